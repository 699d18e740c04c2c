import zipfile
from collections import Counter
from pathlib import Path

import pytest

from headrace.ingest.movielens import MovieLens
from headrace.ingest.source import BadRow, ItemRow, ProfileRow, RawEvent, SourceError

ATOMIC = {
    "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t3\t200\n2\t10\t4.5\t100\n",
    "ml.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n10\tToy Story\t1995\tFun Film\n",
    "ml.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\twriter\t85711\n",
}
DAT = {
    "ml-1m/ratings.dat": "1::10::3::200\n2::10::4.5::100\n",
    "ml-1m/movies.dat": "10::Toy Story (1995)::Fun|Film\n",
    "ml-1m/users.dat": "1::M::24::writer::85711\n",
}
CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,3,200\n2,10,4.5,100\n",
    "movies.csv": 'movieId,title,genres\n10,"Story, The Toy (1995)",Fun|Film\n11,Nothing,(no genres listed)\n',
}

IN_1995 = 788_918_400_000_000


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / Path(name).name).write_text(text)
    return folder


def test_atomic_files_give_ratings_items_and_profiles_from_the_first_rating_on(tmp_path: Path) -> None:
    first, second, item, profile = MovieLens(write(tmp_path, ATOMIC)).read()
    assert isinstance(first, RawEvent)
    assert isinstance(second, RawEvent)
    assert {key: first.raw[key] for key in ("type", "user_id", "item_id", "value", "timestamp")} == {  # type: ignore[index]
        "type": "rate",
        "user_id": "1",
        "item_id": "10",
        "value": 3.0,
        "timestamp": "1970-01-01T00:03:20.000000Z",
    }
    assert second.raw["value"] == 4.5  # type: ignore[index]
    assert item == ItemRow("10", 100_000_000, "Toy Story (1995)", "Fun", attributes=("Fun", "Film"), listed_at=IN_1995)
    assert profile == ProfileRow("1", 100_000_000, age=24, segment="writer")


def test_the_zip_of_the_dat_layout_gives_the_same_rows_and_ids(tmp_path: Path) -> None:
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, text in DAT.items():
            packed.writestr(name, text)
    (tmp_path / "atomic").mkdir()
    atomic = list(MovieLens(write(tmp_path / "atomic", ATOMIC)).read())
    packed_rows = list(MovieLens(archive).read())
    assert [row.raw for row in packed_rows[:2]] == [row.raw for row in atomic[:2]]  # type: ignore[union-attr]
    assert packed_rows[2:] == atomic[2:]


def test_the_csv_layout_reads_quoted_titles_and_films_without_genre(tmp_path: Path) -> None:
    rows = list(MovieLens(write(tmp_path, CSV)).read())
    assert rows[2:] == [
        ItemRow("10", 100_000_000, "Story, The Toy (1995)", "Fun", attributes=("Fun", "Film"), listed_at=IN_1995),
        ItemRow("11", 100_000_000, title="Nothing"),
    ]


def test_a_rating_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, ATOMIC | {"ml.inter": ATOMIC["ml.inter"] + "3\t10\tgood\t300\n"})
    [bad] = [row for row in MovieLens(folder).read() if isinstance(row, BadRow)]
    assert bad == BadRow("ml.inter", 4, "rating", "could not convert string to float: 'good'", "3\t10\tgood\t300")


def test_a_folder_without_ratings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no ratings"):
        list(MovieLens(tmp_path).read())


@pytest.mark.data
def test_ml_100k_is_read_whole(datasets: Path) -> None:
    rows = Counter(type(row) for row in MovieLens(datasets / "ml-100k").read())
    assert rows == {RawEvent: 100_000, ItemRow: 1_682, ProfileRow: 943}
