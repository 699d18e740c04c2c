import pyarrow as pa
import torch

from headrace.models.encoders import ItemEncoder, ListEmbedding
from headrace.models.preprocessing import Preprocessing, Vocabulary
from tests.unit.models import tiny_shop


def test_a_list_is_the_mean_of_its_values_and_an_empty_one_is_nothing() -> None:
    embedding = ListEmbedding(Vocabulary(["red", "round"]), width=3)
    codes = torch.tensor([[[2, 3], [2, 0]], [[0, 0], [3, 3]]])
    red, round_ = embedding.table.weight[2], embedding.table.weight[3]
    expected = torch.stack([torch.stack([(red + round_) / 2, red]), torch.stack([torch.zeros(3), round_])])
    assert torch.allclose(embedding(codes), expected)


def test_items_are_directions_and_lists_tell_them_apart() -> None:
    catalogue = tiny_shop.catalogue().append_column(
        "item_catalogue__attributes", pa.array([["red"], ["round"], ["red", "round"], None], pa.list_(pa.string()))
    )
    fitted = Preprocessing.fit(tiny_shop.users(), catalogue, tiny_shop.activity(), {"a": 1}, now_us=0, length=3)
    torch.manual_seed(0)
    encoder = ItemEncoder(fitted, tiny_shop.MODEL).eval()
    same = {"item_id": ["new"] * 3, "item_catalogue__attributes": [["red"], ["round"], ["red"]]}
    vectors = encoder(fitted.items(same, with_activity=False))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
