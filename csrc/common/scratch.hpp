// Per-thread scratch memory: 64-byte aligned, grown on demand, kept for the next call (a decode step allocates
// nothing).
#pragma once

#include <cstddef>
#include <cstdint>

namespace spct {

/// One buffer per use, so that kernels that call each other never share one.
enum class Scratch : int { kPackedRows, kPanel, kKeyTile, kRowState, kSlots, kHidden, kLogits, kSampler, kCount };

/// The calling thread's buffer for `use`, at least `bytes` long, content undefined. Valid until the next call for the
/// same use on the same thread.
void* scratch_bytes(Scratch use, size_t bytes);

template <class T>
static inline T* scratch(Scratch use, size_t count) {
  return static_cast<T*>(scratch_bytes(use, count * sizeof(T)));
}

}  // namespace spct
