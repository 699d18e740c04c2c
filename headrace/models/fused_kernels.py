"""The arithmetic of both models for one user, compiled: the loops of `headrace.models.fused`.

What a request computes is small: 200 rows, 50 places. As some hundred operations of a tensor library most of its time goes into
finding, checking and allocating; here the products go to BLAS and what lies between them is done in passes over memory that is in the
cache. One module, though a long one: the kernels of both models are compiled together and call each other.

Shape suffixes as in `headrace.models.inputs`; P places of the history that hold an item, Q those or candidates that attend to them, W the
width of a packed item, K the inputs of the crosses, X their width, U the hidden width.
"""

from typing import Final, NamedTuple

import numpy as np

from headrace.arrays import Floats32, Ints
from headrace.kernel import fast_kernel

ONE: Final = np.float32(1)
EPSILON: Final = np.float32(1e-5)
"""Of torch.nn.LayerNorm."""
NO_CODE: Final = np.float32(-1)
LOG2_E: Final = np.float32(1.4426950408889634)
SHORTEST: Final = np.float32(1e-12)
"""Of torch.nn.functional.normalize."""
NOT_SEEN: Final = np.float32(-1e30)
LEAST_EXPONENT: Final = np.float32(-126)


class UserWeights(NamedTuple):
    """Of `UserEncoder`. `tables` has the embeddings of all categories below one another, each from `starts_C` on."""

    tables: Floats32
    starts_C: Ints
    numbers_FD: Floats32
    numbers_bias_D: Floats32


class HistoryWeights(NamedTuple):
    """Of `HistoryEncoder`; `column` is where its model's vector begins in a packed item."""

    types: Floats32
    gaps: Floats32
    places_LD: Floats32
    column: int


class BlockWeights(NamedTuple):
    """Of each `Block`, a leading dimension for which. The scales and shifts of norms are in what follows them, here and below."""

    query_key_value: Floats32
    query_key_value_bias: Floats32
    mixed: Floats32
    mixed_bias: Floats32
    up: Floats32
    up_bias: Floats32
    down: Floats32
    down_bias: Floats32
    nearness_HL: Floats32
    beginning_H: Floats32


class TowerWeights(NamedTuple):
    """Of `TwoTowers`' user side."""

    user: UserWeights
    history: HistoryWeights
    start_D: Floats32
    heads: int
    blocks: BlockWeights
    out_DD: Floats32
    out_bias_D: Floats32
    temperature: np.float32


class RankerWeights(NamedTuple):
    """Of `Ranker`, a leading dimension for the crosses. `content` and `codes` are where an item's numbers and codes begin."""

    user: UserWeights
    history: HistoryWeights
    heads: int
    content: int
    codes: int
    recent_places: int
    first_known_C: Floats32
    key_DD: Floats32
    key_bias_D: Floats32
    query_DD: Floats32
    query_bias_D: Floats32
    of_user_X: Floats32
    of_user_bias_X: Floats32
    of_item_KX: Floats32
    crosses: Floats32
    cross_biases: Floats32
    deep_XU: Floats32
    deep_bias_U: Floats32
    deeper_UU: Floats32
    deeper_bias_U: Floats32
    out_XO: Floats32
    out_bias_O: Floats32
    out_deep_UO: Floats32
    values_O: Floats32


class UserState(NamedTuple):
    """What both models make of a user: the vector that retrieval looks for, and what the ranker compares candidates with."""

    vector_D: Floats32
    keys_PD: Floats32
    history_PD: Floats32
    codes_CP: Floats32
    lately_P: Floats32
    of_user_X: Floats32


@fast_kernel
def read_user(
    tower: TowerWeights,
    ranker: RankerWeights,
    table_IW: Floats32,
    categories_C: Ints,
    numbers_F: Floats32,
    items_L: Ints,
    types_L: Ints,
    gaps_L: Ints,
) -> UserState:
    """A user, with the history as rows of `table_IW`; a place of 0 is empty."""
    places_P = np.flatnonzero(items_L)
    x_PD = _history(tower.history, table_IW, places_P, items_L, types_L, gaps_L, 1)
    x_PD[0] = tower.start_D
    vector_D = _user_vector(tower, x_PD, places_P, _user(tower.user, categories_C, numbers_F))
    history_PD = _history(ranker.history, table_IW, places_P, items_L, types_L, gaps_L, 0)
    keys_PD = _linear(history_PD, ranker.key_DD, ranker.key_bias_D)
    own_D = _user(ranker.user, categories_C, numbers_F)
    of_user_X = np.dot(np.concatenate((own_D, numbers_F)), ranker.of_user_X) + ranker.of_user_bias_X
    codes_CP = np.empty((table_IW.shape[1] - ranker.codes, len(places_P)), np.float32)
    lately_P = np.zeros(len(places_P), np.float32)
    for p in range(len(places_P)):
        lately_P[p] = places_P[p] >= len(items_L) - ranker.recent_places
        for c in range(len(codes_CP)):
            code = table_IW[items_L[places_P[p]], ranker.codes + c]
            codes_CP[c, p] = code if code >= ranker.first_known_C[c] else NO_CODE
    return UserState(vector_D, keys_PD, history_PD, codes_CP, lately_P, of_user_X)


@fast_kernel
def score(
    ranker: RankerWeights,
    tower_width: int,
    table_IW: Floats32,
    rows_N: Ints,
    activity_NA: Floats32,
    nearness_N: Floats32,
    user: UserState,
) -> Floats32:
    """`Ranker.scores` of `Ranker.logits`. Shape (N,)."""
    count, width = len(rows_N), ranker.query_DD.shape[0]
    x_NK = np.empty((count, ranker.of_item_KX.shape[0]), np.float32)
    items_ND = np.empty((count, width), np.float32)
    content, activity = ranker.codes - ranker.content, activity_NA.shape[1]
    shares, matches = 2 * width + content + activity, len(user.codes_CP)
    scale = ONE / np.float32(np.sqrt(width))
    for n in range(count):
        row = table_IW[rows_N[n]]
        x = x_NK[n]
        found = np.float32(0)
        for d in range(tower_width):
            found += row[d] * user.vector_D[d]
        for d in range(width):
            items_ND[n, d] = row[ranker.history.column + d]
            x[d] = items_ND[n, d]
        for f in range(content):
            x[2 * width + f] = row[ranker.content + f]
        for a in range(activity):
            x[2 * width + content + a] = activity_NA[n, a]
        for c in range(matches):
            x[shares + c], x[shares + matches + c] = _shares(row[ranker.codes + c], user.codes_CP[c], user.lately_P)
        x[shares + 2 * matches] = nearness_N[n]
        x[shares + 2 * matches + 1] = found * scale
    if len(user.keys_PD):
        query_ND = _linear(items_ND, ranker.query_DD, ranker.query_bias_D)
        x_NK[:, width : 2 * width] = _attend(query_ND, user.keys_PD, user.history_PD, ranker.heads)
    else:
        x_NK[:, width : 2 * width] = 0
    x0_NX = _linear(x_NK, ranker.of_item_KX, user.of_user_X)
    return _outcomes(ranker, x0_NX)


@fast_kernel
def _outcomes(ranker: RankerWeights, x0_NX: Floats32) -> Floats32:
    """Crosses and deep part of what the candidates are, to the expected value of each."""
    crossed_NX = x0_NX.copy()
    made_NX = np.empty_like(x0_NX)
    for layer in range(len(ranker.crosses)):
        np.dot(crossed_NX, ranker.crosses[layer], made_NX)
        bias_X = ranker.cross_biases[layer]
        for n in range(len(x0_NX)):
            for x in range(x0_NX.shape[1]):
                crossed_NX[n, x] += x0_NX[n, x] * (made_NX[n, x] + bias_X[x])
    deep_NU = _linear(_normed(x0_NX), ranker.deep_XU, ranker.deep_bias_U)
    _rectify(deep_NU)
    deeper_NU = _linear(deep_NU, ranker.deeper_UU, ranker.deeper_bias_U)
    _rectify(deeper_NU)
    logits_NO = _linear(crossed_NX, ranker.out_XO, ranker.out_bias_O)
    logits_NO += np.dot(deeper_NU, ranker.out_deep_UO)
    scores_N = np.zeros(len(x0_NX), np.float32)
    for n in range(len(x0_NX)):
        for o in range(logits_NO.shape[1]):
            scores_N[n] += ranker.values_O[o] / (ONE + np.exp(-logits_NO[n, o]))
    return scores_N


@fast_kernel
def _user_vector(tower: TowerWeights, x_PD: Floats32, places_P: Ints, user_D: Floats32) -> Floats32:
    """The blocks over the beginning and the history behind it, then the user: `TwoTowers.users`. Shape (D,)."""
    width, blocks = x_PD.shape[1], tower.blocks
    for block in range(len(blocks.mixed)):
        made = _linear(_normed(x_PD), blocks.query_key_value[block], blocks.query_key_value_bias[block])
        if block == len(blocks.mixed) - 1:  # the last place alone is asked for
            x_PD = x_PD[-1:]
        query = np.ascontiguousarray(made[-len(x_PD) :, :width])
        key, value = made[:, width : 2 * width], made[:, 2 * width :]
        mixed = _look_back(
            query,
            np.ascontiguousarray(key),
            np.ascontiguousarray(value),
            places_P,
            blocks.nearness_HL[block],
            blocks.beginning_H[block],
        )
        x_PD = x_PD + _linear(mixed, blocks.mixed[block], blocks.mixed_bias[block])
        hidden = _linear(_normed(x_PD), blocks.up[block], blocks.up_bias[block])
        _rectify(hidden)
        x_PD = x_PD + _linear(hidden, blocks.down[block], blocks.down_bias[block])
    x_PD[-1] += user_D
    vector_1D = _linear(_normed(x_PD[-1:]), tower.out_DD, tower.out_bias_D)
    vector_D: Floats32 = vector_1D[0]
    length = max(np.sqrt(np.sum(vector_D * vector_D)), SHORTEST)
    scaled_D: Floats32 = vector_D / (length * tower.temperature)
    return scaled_D


@fast_kernel
def _user(weights: UserWeights, categories_C: Ints, numbers_F: Floats32) -> Floats32:
    made_D: Floats32 = np.dot(numbers_F, weights.numbers_FD) + weights.numbers_bias_D
    for c in range(len(categories_C)):
        made_D += weights.tables[weights.starts_C[c] + categories_C[c]]
    return made_D


@fast_kernel
def _history(
    weights: HistoryWeights,
    table_IW: Floats32,
    places_P: Ints,
    items_L: Ints,
    types_L: Ints,
    gaps_L: Ints,
    room: int,
) -> Floats32:
    """The history encoded, with room for more rows before it. Shape (room + P, D)."""
    made_PD = np.empty((len(places_P) + room, weights.types.shape[1]), np.float32)
    for p in range(len(places_P)):
        place = places_P[p]
        row = table_IW[items_L[place]]
        kind, gap = weights.types[types_L[place]], weights.gaps[gaps_L[place]]
        for d in range(made_PD.shape[1]):
            made_PD[room + p, d] = row[weights.column + d] + kind[d] + gap[d] + weights.places_LD[place, d]
    return made_PD


@fast_kernel
def _shares(code: np.float32, codes_P: Floats32, lately_P: Floats32) -> tuple[np.float32, np.float32]:
    """Of all places, and of the late ones, the share with this code."""
    same, same_lately, lately = np.float32(0), np.float32(0), np.float32(0)
    for p in range(len(codes_P)):
        is_same = ONE if codes_P[p] == code else np.float32(0)
        same += is_same
        same_lately += is_same * lately_P[p]
        lately += lately_P[p]
    return same / max(np.float32(len(codes_P)), ONE), same_lately / max(lately, ONE)


@fast_kernel
def _attend(query_QD: Floats32, key_PD: Floats32, value_PD: Floats32, heads: int) -> Floats32:
    """As `headrace.models.encoders.attend`, all places present. Shape (Q, D)."""
    width = query_QD.shape[1] // heads
    mixed_QD = np.empty_like(query_QD)
    scale = ONE / np.float32(np.sqrt(width))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        key_DP = np.ascontiguousarray(key_PD[:, part].T)
        weights_QP = np.dot(np.ascontiguousarray(query_QD[:, part]), key_DP)
        _softmax(weights_QP, scale)
        mixed_QD[:, part] = np.dot(weights_QP, np.ascontiguousarray(value_PD[:, part]))
    return mixed_QD


@fast_kernel
def _look_back(
    query_QD: Floats32,
    key_PD: Floats32,
    value_PD: Floats32,
    places_P: Ints,
    nearness_HL: Floats32,
    beginning_H: Floats32,
) -> Floats32:
    """The last Q of the beginning and the P events behind it attend to themselves and what is before them. Shape (Q, D)."""
    heads = len(nearness_HL)
    count, width = len(query_QD), query_QD.shape[1] // heads
    mixed_QD = np.empty_like(query_QD)
    scale = ONE / np.float32(np.sqrt(width))
    first = len(key_PD) - count
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        key_DP = np.ascontiguousarray(key_PD[:, part].T)
        weights_QP = np.dot(np.ascontiguousarray(query_QD[:, part]), key_DP)
        for q in range(count):
            weights_QP[q, 0] += beginning_H[head] / scale
            for p in range(1, len(key_PD)):
                if p > first + q:
                    weights_QP[q, p] = NOT_SEEN
                else:
                    weights_QP[q, p] += nearness_HL[head, places_P[first + q - 1] - places_P[p - 1]] / scale
        _softmax(weights_QP, scale)
        mixed_QD[:, part] = np.dot(weights_QP, np.ascontiguousarray(value_PD[:, part]))
    return mixed_QD


@fast_kernel
def _softmax(scores_QP: Floats32, scale: np.float32) -> None:
    """Of each row, in place. exp is 2^k times a polynomial for the rest: a call for each number would take as long as the products."""
    count = scores_QP.shape[1]
    powers = np.empty(count, np.int32)
    as_float = powers.view(np.float32)
    for q in range(len(scores_QP)):
        row = scores_QP[q]
        most = row[0]
        for p in range(1, count):
            most = max(most, row[p])
        total = np.float32(0)
        for p in range(count):
            x = max((row[p] - most) * scale * LOG2_E, LEAST_EXPONENT)
            whole = np.floor(x)
            powers[p] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            row[p] = _power_of_two(x - whole)
        for p in range(count):
            row[p] *= as_float[p]
            total += row[p]
        for p in range(count):
            row[p] /= total


@fast_kernel
def _power_of_two(x: np.float32) -> np.float32:
    """2^x for 0 <= x < 1, to 2e-7: the Taylor series about 1/2."""
    y = (x - np.float32(0.5)) * np.float32(0.6931471805599453)
    return np.float32(1.4142135623730951) * (
        ONE
        + y
        * (
            ONE
            + y
            * (
                np.float32(1 / 2)
                + y
                * (np.float32(1 / 6) + y * (np.float32(1 / 24) + y * (np.float32(1 / 120) + y * np.float32(1 / 720))))
            )
        )
    )


@fast_kernel
def _linear(x_NK: Floats32, weight_KM: Floats32, bias_M: Floats32) -> Floats32:
    made_NM: Floats32 = np.dot(x_NK, weight_KM)
    for n in range(len(made_NM)):
        for m in range(made_NM.shape[1]):
            made_NM[n, m] += bias_M[m]
    return made_NM


@fast_kernel
def _rectify(x_NM: Floats32) -> None:
    for n in range(len(x_NM)):
        for m in range(x_NM.shape[1]):
            x_NM[n, m] = max(x_NM[n, m], np.float32(0))


@fast_kernel
def _normed(x_ND: Floats32) -> Floats32:
    """Each row with mean 0 and variance 1: LayerNorm before its scale and shift."""
    made_ND = np.empty_like(x_ND)
    width = np.float32(x_ND.shape[1])
    for n in range(len(x_ND)):
        total = np.float32(0)
        for d in range(x_ND.shape[1]):
            total += x_ND[n, d]
        mean = total / width
        spread = np.float32(0)
        for d in range(x_ND.shape[1]):
            made_ND[n, d] = x_ND[n, d] - mean
            spread += made_ND[n, d] * made_ND[n, d]
        scale = ONE / np.sqrt(spread / width + EPSILON)
        for d in range(x_ND.shape[1]):
            made_ND[n, d] *= scale
    return made_ND
