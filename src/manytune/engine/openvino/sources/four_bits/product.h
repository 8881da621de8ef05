// Products with weights of 4 bits, and gates: what the operations in `operations.cpp` compute.
//
//     W[o, g] = h[o, g] / 17 · (17 Q[o, g] + z[o, g])    Q from 0 to 15; h in half precision and z a whole number for 32 inputs
//     x[g] = s[g] · q[g]                                 q from -127 to 127, as OpenVINO rounds activations
//     y[o] = Σ_g (s[g] · (17 Σ_i q_i Q_i + z Σ_i q_i)) · (h / 17)
//
// What is in the inner brackets is a whole number below 2^24, so that it is exact in whatever order it is summed. The sum
// over groups runs from the first to the last with one rounding each, which is the order of OpenVINO's own products.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t GROUP = 32, LANES = 16, TILE = 8;

// A group of LANES outputs, in five lines of cache. Byte 4 o + i of line v has input 4 v + i of output o in its lower
// half, and input 16 + 4 v + i in its upper half.
struct Weights {
    uint8_t codes[4][4 * LANES];
    uint16_t step[LANES];    // h
    int16_t offset[LANES];   // z, up to 4095
};
static_assert(sizeof(Weights) == 5 * 64, "weights are packed by four_bits.py");

// A group of up to TILE rows of x.
struct Inputs {
    int8_t codes[TILE][GROUP];
    float scale[TILE], sum[TILE];
};

// Memory that is asked for while a product is computed, a line for each start and row; at most one row with each weight.
struct Ahead {
    const char* starts[TILE];
    int64_t steps[TILE];  // from a row to the next
    int64_t count = 0, rows = 0;  // of starts, and of each's rows
};

// How many weights ahead memory is asked for: a tile of many rows takes longer than the processor looks ahead by itself.
constexpr int64_t AHEAD = 6;

inline void quantize(const float* x, int64_t groups, Inputs* to, int64_t row) {
    for (int64_t g = 0; g < groups; g++, x += GROUP) {
        const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + LANES);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
        const float scale = most / 127;
        const __m512 factor = _mm512_set1_ps(1 / scale);  // not finite for zeros, whose scale then makes zeros of any codes
        const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, factor));
        const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, factor));
        int8_t* codes = to[g].codes[row];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtsepi32_epi8(low));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + LANES), _mm512_cvtsepi32_epi8(high));
        to[g].scale[row] = scale;
        to[g].sum[row] = float(_mm512_reduce_add_epi32(_mm512_add_epi32(low, high)));
    }
}

// LANES outputs of R rows.
template <int R>
inline void multiply(const Weights* weights, int64_t groups, const Inputs* inputs, const Ahead& ahead, __m512* y) {
    const __m512i halves = _mm512_set1_epi8(15);
    const __m512 seventeen = _mm512_set1_ps(17), share = _mm512_set1_ps(1 / 17.0f);
    __m512 sums[R];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        const Weights& own = weights[g];
        for (int line = 0; line < 5; line++)
            _mm_prefetch(reinterpret_cast<const char*>(&own + AHEAD) + 64 * line, _MM_HINT_T0);
        if (g < ahead.rows)
            for (int64_t i = 0; i < ahead.count; i++) _mm_prefetch(ahead.starts[i] + g * ahead.steps[i], _MM_HINT_T0);
        __m512i codes[8];
        for (int v = 0; v < 4; v++) {
            const __m512i both = _mm512_loadu_si512(own.codes[v]);
            codes[v] = _mm512_and_si512(both, halves);
            codes[v + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), halves);
        }
        const __m256i* step = reinterpret_cast<const __m256i*>(own.step);
        const __m256i* offset = reinterpret_cast<const __m256i*>(own.offset);
        const __m512 factor = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(step)), share);
        const __m512 zero = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(offset)));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const int32_t* x = reinterpret_cast<const int32_t*>(inputs[g].codes[r]);
            __m512i low = _mm512_setzero_si512(), high = low;
            for (int v = 0; v < 4; v++) {
                low = _mm512_dpbusd_epi32(low, codes[v], _mm512_set1_epi32(x[v]));
                high = _mm512_dpbusd_epi32(high, codes[v + 4], _mm512_set1_epi32(x[v + 4]));
            }
            const __m512 rest = _mm512_mul_ps(zero, _mm512_set1_ps(inputs[g].sum[r]));
            const __m512 whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(low, high)), seventeen, rest);
            sums[r] = _mm512_fmadd_ps(_mm512_mul_ps(whole, _mm512_set1_ps(inputs[g].scale[r])), factor, sums[r]);
        }
    }
    for (int r = 0; r < R; r++) y[r] = sums[r];
}

inline void multiply(int64_t rows, const Weights* weights, int64_t groups, const Inputs* inputs, const Ahead& ahead,
                     __m512* y) {
    switch (rows) {
        case 1: return multiply<1>(weights, groups, inputs, ahead, y);
        case 2: return multiply<2>(weights, groups, inputs, ahead, y);
        case 3: return multiply<3>(weights, groups, inputs, ahead, y);
        case 4: return multiply<4>(weights, groups, inputs, ahead, y);
        case 5: return multiply<5>(weights, groups, inputs, ahead, y);
        case 6: return multiply<6>(weights, groups, inputs, ahead, y);
        case 7: return multiply<7>(weights, groups, inputs, ahead, y);
        default: return multiply<8>(weights, groups, inputs, ahead, y);
    }
}

inline __m512 exponential(__m512 x) {
    // e^x = 2^n e^r with |r| at most half of log 2; the series ends where float32 does.
    x = _mm512_min_ps(_mm512_set1_ps(200), x);  // in this order NaN remains
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 sum = _mm512_set1_ps(1 / 5040.0f);
    for (float factor : {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f})
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(sum, n);
}

// silu(gate) · up
inline __m512 gated(__m512 gate, __m512 up) {
    const __m512 one = _mm512_set1_ps(1);
    const __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
    return _mm512_mul_ps(_mm512_div_ps(gate, below), up);
}

inline __mmask16 lanes(int64_t left) { return left < LANES ? (1u << left) - 1 : 0xffff; }

}  // namespace
