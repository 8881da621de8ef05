// Rows of a few values as columns, in registers.
#pragma once

#include <utility>

#include "tiles.h"

namespace {

// Of two vectors, one after the other, every second value: from the first or from the second one on.
template <int START, int... I>
inline Vector every_second(Vector a, Vector b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * I + START)...);
#else
    return __builtin_shuffle(a, b, Integers{(2 * I + START)...});
#endif
}

// R vectors that hold WIDTH rows of R values, as R columns: `found` a step apart.
template <int R>
inline void columns(const Vector* rows, Vector* found, int step) {
    if constexpr (R == 1) {
        *found = *rows;
    } else {
        Vector even[R / 2], odd[R / 2];
        const auto lanes = std::make_integer_sequence<int, WIDTH>();
        for (int i = 0; i < R / 2; i++) {
            even[i] = every_second<0>(rows[2 * i], rows[2 * i + 1], lanes);
            odd[i] = every_second<1>(rows[2 * i], rows[2 * i + 1], lanes);
        }
        columns<R / 2>(even, found, 2 * step);
        columns<R / 2>(odd, found + step, 2 * step);
    }
}

}  // namespace
