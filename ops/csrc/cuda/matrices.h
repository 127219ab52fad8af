// Matrices in memory, the operands of the products in passes.h, and how BLAS is told of them.
#pragma once

#include <cstdint>

namespace deform_conv {

// Matrices of equal shape, one for each weight group. Strides are in elements. Either the elements
// of a row or those of a column are contiguous.
template <typename T>
struct Matrices {
  T* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride;
  int64_t stride;  // between two matrices
};

template <typename T>
Matrices<T> transposed(const Matrices<T>& m) {
  return {m.data, m.columns, m.rows, m.column_stride, m.row_stride, m.stride};
}

// The sizes of a product as BLAS takes them. To BLAS, which stores matrices by columns, a matrix
// that is stored by rows is its own transpose. out = a b is therefore computed as out^T = b^T a^T:
// the first operand is b, the second a. An operand that is itself stored by columns is transposed.
struct Blas {
  struct Operand {
    bool transposed;
    int64_t leading;  // elements between two columns as BLAS sees them
  };

  Operand first, second;
  int64_t m, n, k;  // out^T is (m, n), the sums have k terms
  int64_t leading;  // of out^T
};

template <typename T>
Blas::Operand operand_of(const Matrices<T>& m) {
  // A single row or column fits both ways, but leading must not be less than a column's length.
  const bool by_rows = m.column_stride == 1 && m.row_stride >= m.columns;
  return {!by_rows, by_rows ? m.row_stride : m.column_stride};
}

template <typename A, typename B, typename Out>
Blas blas_of(const Matrices<A>& a, const Matrices<B>& b, const Matrices<Out>& out) {
  return {operand_of(b), operand_of(a), out.columns, out.rows, a.columns, out.row_stride};
}

}  // namespace deform_conv
