// Small matrix products on values that stay in a core's cache, for any processor with a vector unit.
//
// One loop does them all: a tile of C stays in registers while the sum runs over k. A is read a value at a time, with any
// distance between its rows and between its columns, so that a transposed A costs nothing; B a vector at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// Values in a vector register, and the tile's size in rows and in vectors, which leaves registers for A and B.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 6, COLUMNS = 4;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, ROWS = 6, COLUMNS = 2;
#else
constexpr int WIDTH = 4, ROWS = 4, COLUMNS = 4;
#endif

// Written to and read from anywhere in memory. (As a template's argument the type would lose that attribute.)
template <int LANES>
struct Lanes {
    typedef float Values __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
    typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
};
using Vector = Lanes<WIDTH>::Values;
using Integers = Lanes<WIDTH>::Integers;

template <int LANES = WIDTH>
inline auto load(const float* from) {
    return *reinterpret_cast<const typename Lanes<LANES>::Values*>(from);
}

template <int LANES = WIDTH>
inline void store(float* to, const typename Lanes<LANES>::Values& values) {
    *reinterpret_cast<typename Lanes<LANES>::Values*>(to) = values;
}

inline int64_t padded(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// A matrix that is read value by value.
struct Left {
    const float* data;
    int64_t row, column;  // distances

    Left from_row(int64_t i) const { return {data + i * row, row, column}; }
};

// A matrix whose rows are contiguous; `row` is the distance between them.
template <typename T>
struct Rows {
    T* data;
    int64_t row;

    Rows at(int64_t i, int64_t j) const { return {data + i * row + j, row}; }
};

template <int LANES, int R, int C>
inline void tile(bool add, int64_t depth, Left a, Rows<const float> b, Rows<float> c) {
    typedef typename Lanes<LANES>::Values V;
    V sums[R][C];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) sums[i][j] = add ? load<LANES>(c.data + i * c.row + j * LANES) : V{};
    for (int64_t k = 0; k < depth; k++) {
        V right[C];
        for (int j = 0; j < C; j++) right[j] = load<LANES>(b.data + k * b.row + j * LANES);
        for (int i = 0; i < R; i++) {
            const float left = a.data[i * a.row + k * a.column];
            for (int j = 0; j < C; j++) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) store<LANES>(c.data + i * c.row + j * LANES, sums[i][j]);
}

template <int LANES, int R, int C>
inline void column_of_tiles(bool add, int64_t rows, int64_t depth, Left a, Rows<const float> b, Rows<float> c) {
    int64_t i = 0;
    for (; i + R <= rows; i += R) tile<LANES, R, C>(add, depth, a.from_row(i), b, c.at(i, 0));
    for (; i + 2 <= rows; i += 2) tile<LANES, 2, C>(add, depth, a.from_row(i), b, c.at(i, 0));
    for (; i < rows; i++) tile<LANES, 1, C>(add, depth, a.from_row(i), b, c.at(i, 0));
}

// C = A B, or C += A B. A is rows x depth, B depth x columns; columns: a multiple of WIDTH, or WIDTH / 2.
template <int R = ROWS, int C = COLUMNS>
inline void multiply(bool add, int64_t rows, int64_t columns, int64_t depth, Left a, Rows<const float> b, Rows<float> c) {
    int64_t j = 0;
    for (; j + C * WIDTH <= columns; j += C * WIDTH)
        column_of_tiles<WIDTH, R, C>(add, rows, depth, a, b.at(0, j), c.at(0, j));
    for (; j + WIDTH <= columns; j += WIDTH)
        column_of_tiles<WIDTH, R, 1>(add, rows, depth, a, b.at(0, j), c.at(0, j));
    if (j < columns)
        column_of_tiles<WIDTH / 2, R, 1>(add, rows, depth, a, b.at(0, j), c.at(0, j));
}

// The transpose of a count x size matrix, with zeros in place of rows that aren't there: size x width.
inline void transpose(Rows<const float> source, int64_t count, int64_t size, float* target, int64_t width) {
    for (int64_t first = 0; first < width; first += WIDTH) {
        const int64_t end = std::min<int64_t>(first + WIDTH, width);
        for (int64_t d = 0; d < size; d++)
            for (int64_t i = first; i < end; i++) target[d * width + i] = i < count ? source.data[i * source.row + d] : 0.0f;
    }
}

}  // namespace
