"""How a fit is told in one line."""

from training.fit import Epoch
from training.result import how_it_went


def epochs(*judged: float) -> list[Epoch]:
    return [Epoch(number, 2.0, each, 1.0, 1_000.0, 0.05) for number, each in enumerate(judged)]


def test_the_best_epoch_is_told_beside_the_start() -> None:
    assert how_it_went(epochs(0.1, 0.3, 0.2), "NDCG@10") == (
        "2 epochs, epoch 1 is the best, NDCG@10 0.1000 -> 0.3000 on the validation; 1,000 rows/s, 5.0% of it waiting for rows"
    )


def test_a_model_that_no_epoch_made_better_is_told_to_stay_as_it_began() -> None:
    assert how_it_went(epochs(0.3, 0.2), "NDCG@10").startswith(
        "1 epoch, none better than how it began, which is kept: NDCG@10 0.3000 on the validation"
    )
