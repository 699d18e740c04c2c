"""Both models as a request runs them: their weights as arrays, their arithmetic in `headrace.models.fused_kernels`.

The modules say what the models are and are what training fits; this is the same computation for one user without a tensor library
between the operations, and tests hold the two together. A model of another shape needs kernels of its own (docs/adr/0012).

Shape suffixes as in `headrace.models.fused_kernels`.
"""

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from headrace.arrays import Floats32, Ints
from headrace.models.encoders import HistoryEncoder, UserEncoder
from headrace.models.fused_kernels import (
    BlockWeights,
    HistoryWeights,
    RankerWeights,
    TowerWeights,
    UserState,
    UserWeights,
    read_user,
    score,
)
from headrace.models.inputs import OneUser
from headrace.models.packed_items import PackedItems
from headrace.models.ranker import RECENT_PLACES, Ranker
from headrace.models.towers import TEMPERATURE, TwoTowers


class Fused:
    """Both models as they were when this was made, over items as `PackedItems` has them."""

    def __init__(self, towers: TwoTowers, ranker: Ranker, packing: PackedItems) -> None:
        self._tower = _tower_weights(towers)
        self._ranker = _ranker_weights(ranker, packing)
        self._width = packing.width

    def user(self, user: OneUser, table_IW: Floats32) -> UserState:
        """`user.items_L` are rows of the table."""
        return UserState(*read_user(self._tower, self._ranker, table_IW, *user))

    def scores(
        self, user: UserState, table_IW: Floats32, rows_N: Ints, activity_NA: Floats32, nearness_N: Floats32
    ) -> Floats32:
        """`Ranker.scores` of the candidates at these rows. Shape (N,)."""
        return score(self._ranker, self._width, table_IW, rows_N, activity_NA, nearness_N, user)


def _tower_weights(towers: TwoTowers) -> TowerWeights:
    blocks = []
    for block in towers.blocks:
        asked, asked_bias = _linear(block.query, block.norm)
        told, told_bias = _linear(block.key_value, block.norm)
        both = np.concatenate([asked, told], axis=1), np.concatenate([asked_bias, told_bias])
        near = _array(block.nearness), _array(block.beginning)
        blocks.append(
            (*both, *_linear(block.out), *_linear(block.mlp[0], block.norm_mlp), *_linear(block.mlp[2]), *near)
        )
    each = [np.stack(parts) for parts in zip(*blocks, strict=True)]
    out_DD, out_bias_D = _linear(towers.out, towers.norm)
    length, width = towers.blocks[0].nearness.shape[1], len(out_bias_D)
    history = _history_weights(towers.history_encoder, np.zeros((length, width), np.float32), 0)
    return TowerWeights(
        _user_weights(towers.user_encoder),
        history,
        _array(towers.start),
        towers.blocks[0].heads,
        BlockWeights(*each),
        out_DD,
        out_bias_D,
        np.float32(TEMPERATURE),
    )


def _ranker_weights(ranker: Ranker, packing: PackedItems) -> RankerWeights:
    crosses = [_linear(cross) for cross in ranker.crosses]
    wide = ranker.project_item.out_features
    return RankerWeights(
        _user_weights(ranker.user_encoder),
        _history_weights(ranker.history_encoder, _array(ranker.places.weight), packing.width),
        ranker.heads,
        packing.content_at,
        packing.codes_at,
        RECENT_PLACES,
        _array(ranker.first_known_C),
        *_linear(ranker.key),
        *_linear(ranker.query),
        *_linear(ranker.project_user),
        _linear(ranker.project_item)[0],
        np.array([weight for weight, _ in crosses], np.float32).reshape(-1, wide, wide),
        np.array([bias for _, bias in crosses], np.float32).reshape(-1, wide),
        *_linear(ranker.deep[1], ranker.deep[0]),
        *_linear(ranker.deep[4]),
        *_linear(ranker.out_crossed),
        _linear(ranker.out_deep)[0],
        _array(ranker.values_O),
    )


def _user_weights(encoder: UserEncoder) -> UserWeights:
    width = encoder.numbers.out_features
    tables = [_array(embedding(torch.arange(embedding.table.num_embeddings))) for embedding in encoder.categories]
    starts = np.array([0, *accumulate(len(table) for table in tables)][: len(tables)], np.int64)
    return UserWeights(
        np.concatenate([np.zeros((0, width), np.float32), *tables]),
        starts,
        *_linear(encoder.numbers),
    )


def _history_weights(encoder: HistoryEncoder, places_LD: Floats32, column: int) -> HistoryWeights:
    return HistoryWeights(_array(encoder.types.weight), _array(encoder.gaps.weight), places_LD, column)


def _linear(layer: nn.Linear, norm: nn.LayerNorm | None = None) -> tuple[Floats32, Floats32]:
    """Weight, inputs first, and bias. The scale and shift of a norm before it become part of them."""
    weight_MK = layer.weight.detach().double()
    bias_M = weight_MK.new_zeros(len(weight_MK)) if layer.bias is None else layer.bias.detach().double()
    if norm is not None:
        bias_M = bias_M + weight_MK @ norm.bias.detach().double()
        weight_MK = weight_MK * norm.weight.detach().double()
    return _array(weight_MK.T), _array(bias_M)


def _array(tensor: Tensor) -> Floats32:
    return np.ascontiguousarray(tensor.detach().float().numpy())
