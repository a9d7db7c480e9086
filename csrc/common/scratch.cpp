#include "common/scratch.hpp"

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace spct {
namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Buffer {
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;
};

}  // namespace

void* scratch_bytes(Scratch use, size_t bytes) {
  thread_local std::array<Buffer, static_cast<size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(use)];
  if (buffer.bytes < bytes || buffer.memory == nullptr) {
    const size_t grown = (bytes + bytes / 4 + 64) / 64 * 64 + 64;
    buffer.memory.reset();
    buffer.bytes = 0;
    buffer.memory.reset(std::aligned_alloc(64, grown));
    if (buffer.memory == nullptr) throw std::bad_alloc();
    buffer.bytes = grown;
  }
  return buffer.memory.get();
}

}  // namespace spct
