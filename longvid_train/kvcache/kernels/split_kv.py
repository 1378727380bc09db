"""Triton kernels: attention of a few queries over all pages of a layer, on the packed codes.

Split-KV decoding (Flash-Decoding: Dao et al., 2023): `split_pass` runs one program for each row, key-value head and
piece of a page, keeps an online softmax over the piece and writes its peak, mass and mixed values; `merge_pass` joins
the pieces by their peaks. Bound by memory, so every byte of codes is read once, all query heads of a group ride along
as rows of one matrix product, and static parameters never enter the loop: the query is multiplied by the scale in the
prologue, its product with the offset is one number a query row, and the values' scale and offset are applied after
the pieces are joined.

Rotated keys: a block of ``BT`` tokens starts at position ``p0``. ``R(p0 + t) = R(p0) R(t)``, so the query (or its
products with the mean) is turned back by ``p0`` once a block and the keys are turned by ``t theta`` from a table of
``BT`` rows. Sines of large angles are computed once a block and not once a token. Angles differ from those of one
float32 product by its rounding, at most ``2^-23 p theta``.

``BR`` query rows (queries times heads of a group), ``DK`` and ``DV`` channels, all padded to powers of two.
"""

import triton
import triton.language as tl

COLUMNS = tl.constexpr(8)
"""Of the page table: length, first index, codes / stored a / stored o of keys, the same of values."""


@triton.jit
def _pointer(entry, column: tl.constexpr, kind: tl.constexpr):
    return tl.multiple_of(tl.load(entry + column), 16).to(tl.pointer_type(kind))


@triton.jit
def _codes(
    base,
    tokens,
    valid,
    first_word: tl.constexpr,
    words: tl.constexpr,
    padded_words: tl.constexpr,
    row_bytes: tl.constexpr,
    bits: tl.constexpr,
    in_word: tl.constexpr,
    word_bytes: tl.constexpr,
    BT: tl.constexpr,
):
    """``(BT, padded_words * in_word)`` int32 codes of the words from ``first_word`` on; 0 where there are none."""
    word = tl.arange(0, padded_words)
    inside = valid[:, None] & (word < words)[None, :]
    if word_bytes == 3:
        place = base + tokens[:, None] * row_bytes + (first_word + word)[None, :] * 3
        packed = tl.load(place, mask=inside, other=0).to(tl.int32)
        packed |= tl.load(place + 1, mask=inside, other=0).to(tl.int32) << 8
        packed |= tl.load(place + 2, mask=inside, other=0).to(tl.int32) << 16
    else:
        kind: tl.constexpr = tl.uint8 if word_bytes == 1 else tl.uint16 if word_bytes == 2 else tl.int32
        place = base.to(tl.pointer_type(kind)) + tokens[:, None] * (row_bytes // word_bytes)
        packed = tl.load(place + (first_word + word)[None, :], mask=inside, other=0).to(tl.int32)
    shifts = tl.arange(0, in_word) * bits
    spread = (packed[:, :, None] >> shifts[None, None, :]) & ((1 << bits) - 1)
    return tl.reshape(spread, (BT, padded_words * in_word))


@triton.jit
def _level(codes, table, count: tl.constexpr):
    """Levels of codes: themselves, or entries of a table of ``count``."""
    if count == 0:
        return codes.to(tl.float32)
    if count > 8:
        return tl.load(table + codes)
    found = tl.load(table) + tl.zeros_like(codes).to(tl.float32)
    for number in tl.static_range(1, count):
        found = tl.where(codes == number, tl.load(table + number), found)
    return found


@triton.jit
def _product(rows, columns, exact: tl.constexpr):
    """``rows @ columns`` in float32; on tensor cores the rows go as the sum of two bfloat16 numbers."""
    if exact:
        return tl.dot(rows, columns, input_precision="ieee")
    high = rows.to(tl.bfloat16)
    low = (rows - high.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(high, columns.to(tl.bfloat16)) + tl.dot(low, columns.to(tl.bfloat16))


@triton.jit
def _grouped(
    x,
    scales,
    offsets,
    tokens,
    valid,
    channel,
    head_dim: tl.constexpr,
    group: tl.constexpr,
):
    """``x (BT, D)`` with the scale and offset of each token's group of channels."""
    place = tokens[:, None] * (head_dim // group) + channel[None, :] // group
    inside = valid[:, None] & (channel < head_dim)[None, :]
    scale = tl.load(scales + place, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(offsets + place, mask=inside, other=0.0).to(tl.float32)
    return x * scale + offset


@triton.jit
def _beside(entry, column: tl.constexpr, pair, length, stored: tl.constexpr, group: tl.constexpr, D: tl.constexpr):
    """Where the stored scales and offsets of a row's head begin; a gain is a scale for each token."""
    entries = length
    if stored == 2:
        entries = length * (D // group)
    if stored == 3:
        entries = (length + group - 1) // group * D
    scales = _pointer(entry, column, tl.float16) + pair * entries
    return scales, _pointer(entry, column + 1, tl.float16) + pair * entries


@triton.jit
def _gained(x, gains, tokens, valid, stored: tl.constexpr):
    """``x (BR, BT)`` times the gain of each token, where tokens have one."""
    if stored == 1:
        x *= tl.load(gains + tokens, mask=valid, other=0.0).to(tl.float32)[None, :]
    return x


@triton.jit
def _straight_scores(
    q,
    x,
    scales,
    offsets,
    tokens,
    valid,
    block,
    channel,
    stored: tl.constexpr,
    group: tl.constexpr,
    D: tl.constexpr,
    exact: tl.constexpr,
):
    """``(BR, BT)`` products of queries with keys that are not turned; a group of tokens scales the query."""
    if stored == 2:
        x = _grouped(x, scales, offsets, tokens, valid, channel, D, group)
    if stored == 3:
        place = (block // group) * D + channel
        offset = tl.load(offsets + place, mask=channel < D, other=0.0).to(tl.float32)
        scale = tl.load(scales + place, mask=channel < D, other=0.0).to(tl.float32)
        return _product(q * scale[None, :], tl.trans(x), exact) + tl.sum(q * offset[None, :], 1)[:, None]
    return _product(q, tl.trans(x), exact)


@triton.jit
def _turned_scores(q_first, q_second, x_first, x_second, far_cos, far_sin, near_cos, near_sin, exact: tl.constexpr):
    """Products with keys ``x`` that are turned by ``near``, of queries that are turned back by ``far``."""
    turned = x_first * near_cos - x_second * near_sin
    scores = _product(q_first * far_cos + q_second * far_sin, tl.trans(turned), exact)
    turned = x_second * near_cos + x_first * near_sin
    return scores + _product(q_second * far_cos - q_first * far_sin, tl.trans(turned), exact)


@triton.jit
def _hide(scores, visible, place, mask, kind: tl.constexpr):
    """Minus infinity where a score is not visible; a mask of bytes hides, one of numbers is added."""
    if kind == 1:
        visible = visible & (tl.load(mask + place, mask=visible, other=0) != 0)
    if kind == 2:
        scores += tl.load(mask + place, mask=visible, other=0.0)
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _mix(
    weights,
    x,
    scales,
    offsets,
    tokens,
    valid,
    channel,
    stored: tl.constexpr,
    group: tl.constexpr,
    D: tl.constexpr,
    exact: tl.constexpr,
):
    """``(BR, DV)`` values by weight, without their static scale and offset."""
    weights = _gained(weights, scales, tokens, valid, stored)
    if stored == 2:
        x = _grouped(x, scales, offsets, tokens, valid, channel, D, group)
    return _product(weights, x, exact)


@triton.jit
def split_pass(
    query,
    table,
    peaks,
    masses,
    mixed,
    key_scale,
    key_offset,
    key_levels,
    key_mean,
    theta,
    near_cos,
    near_sin,
    value_levels,
    first_position,
    padding,
    mask,
    mask_row,
    mask_query,
    heads,
    rows,
    queries,
    parts,
    part_tokens,
    D: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    DH: tl.constexpr,
    SINKS: tl.constexpr,
    MASK: tl.constexpr,
    EXACT: tl.constexpr,
    ROTATES: tl.constexpr,
    K_BITS: tl.constexpr,
    K_IN_WORD: tl.constexpr,
    K_WORD_BYTES: tl.constexpr,
    K_PADDED_WORDS: tl.constexpr,
    K_LEVELS: tl.constexpr,
    K_STORED: tl.constexpr,
    K_GROUP: tl.constexpr,
    V_BITS: tl.constexpr,
    V_IN_WORD: tl.constexpr,
    V_WORD_BYTES: tl.constexpr,
    V_PADDED_WORDS: tl.constexpr,
    V_LEVELS: tl.constexpr,
    V_STORED: tl.constexpr,
    V_GROUP: tl.constexpr,
):
    """Peak, mass and mixed values (without their static scale and offset) of one piece of a page.

    ``K_STORED`` and ``V_STORED`` number `sides.Stored`. ``ROTATES``: 0 nothing, 1 the mean, 2 mean and codes. ``MASK``:
    0 none, 1 bytes, 2 numbers to add. ``DH`` is the padded half of a head; ``K_PADDED_WORDS`` covers a head, or half of
    one where codes are rotated.
    """
    pair = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    batch_row = pair // heads
    head = pair % heads
    entry = table + (piece // parts) * COLUMNS
    length = tl.load(entry)
    start = tl.load(entry + 1)
    first = (piece % parts) * part_tokens
    last = tl.minimum(first + part_tokens, length)

    K_BYTES: tl.constexpr = D * K_BITS // 8
    V_BYTES: tl.constexpr = D * V_BITS // 8
    K_WORDS: tl.constexpr = D // K_IN_WORD
    HALF: tl.constexpr = K_WORDS // 2
    DK: tl.constexpr = K_PADDED_WORDS * K_IN_WORD
    DV: tl.constexpr = V_PADDED_WORDS * V_IN_WORD
    keys = _pointer(entry, 2, tl.uint8) + pair * length * K_BYTES
    values = _pointer(entry, 5, tl.uint8) + pair * length * V_BYTES
    key_scales, key_offsets = _beside(entry, 3, pair, length, K_STORED, K_GROUP, D)
    value_scales, value_offsets = _beside(entry, 6, pair, length, V_STORED, V_GROUP, D)

    r = tl.arange(0, BR)
    real = r < rows
    query += pair * rows * D
    bias = tl.zeros((BR,), tl.float32)
    if ROTATES < 2:
        dk = tl.arange(0, DK)
        q = tl.load(query + r[:, None] * D + dk[None, :], mask=real[:, None] & (dk < D)[None, :], other=0.0)
        if K_STORED < 2:
            bias = tl.sum(q * tl.load(key_offset + head * D + dk, mask=dk < D, other=0.0)[None, :], 1)
            q *= tl.load(key_scale + head * D + dk, mask=dk < D, other=0.0)[None, :]
    if ROTATES > 0:
        dh = tl.arange(0, DH)
        in_half = dh < D // 2
        near = real[:, None] & in_half[None, :]
        q_first = tl.load(query + r[:, None] * D + dh[None, :], mask=near, other=0.0)
        q_second = tl.load(query + r[:, None] * D + D // 2 + dh[None, :], mask=near, other=0.0)
        mean_first = tl.load(key_mean + head * D + dh, mask=in_half, other=0.0)
        mean_second = tl.load(key_mean + head * D + D // 2 + dh, mask=in_half, other=0.0)
        even = q_first * mean_first[None, :] + q_second * mean_second[None, :]
        odd = q_second * mean_first[None, :] - q_first * mean_second[None, :]
        frequency = tl.load(theta + dh, mask=in_half, other=0.0)
        origin = tl.load(first_position + batch_row) + start
    if ROTATES == 2:
        scale_first = tl.load(key_scale + head * D + dh, mask=in_half, other=0.0)[None, :]
        scale_second = tl.load(key_scale + head * D + D // 2 + dh, mask=in_half, other=0.0)[None, :]

    sinks_from = tl.load(padding + batch_row)
    step = tl.arange(0, BT)
    dv = tl.arange(0, DV)
    peak = tl.full((BR,), float("-inf"), tl.float32)
    mass = tl.zeros((BR,), tl.float32)
    total = tl.zeros((BR, DV), tl.float32)
    for block in range(first, last, BT):
        tokens = block + step
        valid = tokens < last
        if ROTATES < 2:
            codes = _codes(
                keys, tokens, valid, 0, K_WORDS, K_PADDED_WORDS, K_BYTES, K_BITS, K_IN_WORD, K_WORD_BYTES, BT
            )
            x = _level(codes, key_levels, K_LEVELS)
            scores = _straight_scores(
                q, x, key_scales, key_offsets, tokens, valid, block, dk, K_STORED, K_GROUP, D, EXACT
            )
        if ROTATES > 0:
            angle = (origin + block).to(tl.float32) * frequency
            far_cos = tl.cos(angle)[None, :]
            far_sin = tl.sin(angle)[None, :]
            turn = step[:, None] * (D // 2) + dh[None, :]
            turn_cos = tl.load(near_cos + turn, mask=in_half[None, :], other=0.0)
            turn_sin = tl.load(near_sin + turn, mask=in_half[None, :], other=0.0)
        if ROTATES == 2:
            codes = _codes(keys, tokens, valid, 0, HALF, K_PADDED_WORDS, K_BYTES, K_BITS, K_IN_WORD, K_WORD_BYTES, BT)
            x = _level(codes, key_levels, K_LEVELS) * scale_first
            codes = _codes(
                keys, tokens, valid, HALF, HALF, K_PADDED_WORDS, K_BYTES, K_BITS, K_IN_WORD, K_WORD_BYTES, BT
            )
            x_second = _level(codes, key_levels, K_LEVELS) * scale_second
            scores = _turned_scores(q_first, q_second, x, x_second, far_cos, far_sin, turn_cos, turn_sin, EXACT)
        scores = _gained(scores, key_scales, tokens, valid, K_STORED)
        if ROTATES > 0:
            scores += _product(even * far_cos + odd * far_sin, tl.trans(turn_cos), EXACT)
            scores += _product(odd * far_cos - even * far_sin, tl.trans(turn_sin), EXACT)

        index = start + tokens
        seen = valid & ((index < sinks_from) | (index >= sinks_from + SINKS))
        place = batch_row * mask_row + (r % queries)[:, None] * mask_query + index[None, :]
        scores = _hide(scores + bias[:, None], real[:, None] & seen[None, :], place, mask, MASK)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        ground = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp(scores - ground[:, None])
        shrunk = tl.exp(peak - ground)
        mass = mass * shrunk + tl.sum(weights, 1)
        codes = _codes(
            values, tokens, valid, 0, D // V_IN_WORD, V_PADDED_WORDS, V_BYTES, V_BITS, V_IN_WORD, V_WORD_BYTES, BT
        )
        x = _level(codes, value_levels, V_LEVELS)
        added = _mix(weights, x, value_scales, value_offsets, tokens, valid, dv, V_STORED, V_GROUP, D, EXACT)
        total = total * shrunk[:, None] + added
        peak = new_peak

    out = (pair * tl.num_programs(1) + piece) * rows + r
    tl.store(peaks + out, peak, mask=real)
    tl.store(masses + out, mass, mask=real)
    tl.store(mixed + out[:, None] * D + dv[None, :], total, mask=real[:, None] & (dv < D)[None, :])


@triton.jit
def merge_pass(
    peaks,
    masses,
    mixed,
    value_scale,
    value_offset,
    out_peak,
    out_mass,
    out_mixed,
    heads,
    rows,
    pieces,
    D: tl.constexpr,
    DP: tl.constexpr,
    BP: tl.constexpr,
    STATIC: tl.constexpr,
):
    """Join the pieces of one query row, ``BP`` at a time, and apply the values' static scale and offset."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    head = pair % heads
    d = tl.arange(0, DP)
    peak = float("-inf")
    for begin in range(0, pieces, BP):
        piece = begin + tl.arange(0, BP)
        place = (pair * pieces + piece) * rows + row
        peak = tl.maximum(peak, tl.max(tl.load(peaks + place, mask=piece < pieces, other=float("-inf")), 0))
    ground = tl.where(peak == float("-inf"), 0.0, peak)
    mass = tl.zeros((BP,), tl.float32)
    total = tl.zeros((DP,), tl.float32)
    for begin in range(0, pieces, BP):
        piece = begin + tl.arange(0, BP)
        there = piece < pieces
        place = (pair * pieces + piece) * rows + row
        share = tl.exp(tl.load(peaks + place, mask=there, other=float("-inf")) - ground)
        mass += share * tl.load(masses + place, mask=there, other=0.0)
        part = tl.load(mixed + place[:, None] * D + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
        total += tl.sum(share[:, None] * part, 0)
    whole = tl.sum(mass, 0)
    if STATIC:
        scale = tl.load(value_scale + head * D + d, mask=d < D, other=0.0)
        offset = tl.load(value_offset + head * D + d, mask=d < D, other=0.0)
        total = total * scale + offset * whole
    out = pair * rows + row
    tl.store(out_peak + out, peak)
    tl.store(out_mass + out, whole)
    tl.store(out_mixed + out * D + d, total, mask=d < D)
