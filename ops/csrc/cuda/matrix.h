// A matrix in memory, an operand of the products in passes.h.
#pragma once

#include <cstdint>

namespace deform_conv {

template <typename T>
struct Matrix {
  T* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride;
};

template <typename T>
Matrix<T> transposed(const Matrix<T>& m) {
  return {m.data, m.columns, m.rows, m.column_stride, m.row_stride};
}

}  // namespace deform_conv
