// Runs CUDA's device code on the CPU, for tests without a GPU: g++ compiles the kernels after this
// header. Every thread of a block is a fiber (ucontext), so that the lanes of a warp can meet in a
// shuffle as they do on a GPU. The test chooses the order in which blocks and threads run: the
// results of a kernel must not depend on it.
//
// What is wrong on a GPU ends the process: a meeting that never completes, for example because a
// lane of its mask has returned; a misaligned row of a matrix; global stores to shared memory.
// Copies that cp.async starts arrive when they are waited for, not before.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

struct Dim3 {
  unsigned x;
};

using std::min;

namespace emulation {

enum class Order { kForward, kReverse, kShuffled };

// A fiber: its stack and where it continues.
struct Fiber {
  static constexpr size_t kStack = 128 << 10;

  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done;
};

// The value that a lane brings to a meeting.
struct alignas(16) Words {
  uint32_t at[8];
};

// The place where the lanes of one mask exchange values. Two sets of slots suffice: before all
// lanes have read the values of one exchange, a lane can enter the next one but not the one after
// it.
struct Meeting {
  Words values[2][32];
  unsigned rounds[32] = {};
};

// A copy to shared memory that has started and not yet arrived.
struct Copy {
  void* to;
  const void* from;
};

class Gpu;
inline Gpu* running = nullptr;

class Gpu {
 public:
  Order order = Order::kForward;
  std::mt19937 random{1};

  template <typename Function>
  void run(unsigned blocks, unsigned threads, size_t shared_bytes, const Function& kernel) {
    running = this;
    kernel_ = [](const void* given) { (*static_cast<const Function*>(given))(); };
    given_ = &kernel;
    void* memory = nullptr;
    require(posix_memalign(&memory, 128, shared_bytes) == 0, "out of memory");
    shared_ = {static_cast<char*>(memory), std::free};
    shared_bytes_ = shared_bytes;
    for (unsigned block : sequence(blocks)) {
      block_ = block;
      run_block(threads);
    }
    running = nullptr;
  }

  unsigned block() const { return block_; }
  unsigned thread() const { return thread_; }

  char* shared() const { return shared_.get(); }

  bool is_shared(const void* memory) const {
    return memory >= shared_.get() && memory < shared_.get() + shared_bytes_;
  }

  // Brings a value to the meeting of the lanes in `mask` and returns the values of all of them.
  template <typename T>
  std::array<T, 32> meet(unsigned mask, const T& value) {
    static_assert(sizeof(T) <= sizeof(Words));
    const unsigned lane = thread_ % 32;
    require(mask >> lane & 1, "a lane is not in its own mask");
    Meeting& meeting = meetings_[{thread_ / 32, mask}];
    const unsigned round = ++meeting.rounds[lane];
    std::memcpy(&meeting.values[round % 2][lane], &value, sizeof(T));
    wait([&] {
      for (unsigned other = 0; other < 32; ++other)
        if (mask >> other & 1 && meeting.rounds[other] < round) return false;
      return true;
    });
    std::array<T, 32> values;
    for (unsigned other = 0; other < 32; ++other)
      std::memcpy(&values[other], &meeting.values[round % 2][other], sizeof(T));
    return values;
  }

  template <typename T>
  T exchange(unsigned mask, T value, unsigned from) {
    require(mask >> from & 1, "a lane reads from outside its mask");
    return meet(mask, value)[from];
  }

  void meet_block() {
    const unsigned barrier = ++barriers_[thread_];
    wait([&] {
      for (size_t other = 0; other < barriers_.size(); ++other)
        if (barriers_[other] < barrier && !fibers_[other]->done) return false;
      return true;
    });
  }

  // Starts a copy. Until it arrives, its target holds NaN, which is what a reader without a wait
  // gets.
  void start(const Copy& copy) {
    require(is_shared(copy.to), "a copy to what is not shared memory");
    require(reinterpret_cast<uintptr_t>(copy.to) % 16 == 0, "a misaligned copy");
    require(reinterpret_cast<uintptr_t>(copy.from) % 16 == 0, "a misaligned copy");
    std::memset(copy.to, 0xff, 16);
    copies_[thread_].push_back(copy);
  }

  void finish_copies() {
    for (const Copy& copy : copies_[thread_]) std::memcpy(copy.to, copy.from, 16);
    copies_[thread_].clear();
  }

  static void require(bool condition, const char* message) {
    if (condition) return;
    std::fprintf(stderr, "cuda_emulation: %s\n", message);
    std::abort();
  }

 private:
  std::vector<unsigned> sequence(unsigned count) {
    std::vector<unsigned> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    if (order == Order::kReverse) std::reverse(numbers.begin(), numbers.end());
    if (order == Order::kShuffled) std::shuffle(numbers.begin(), numbers.end(), random);
    return numbers;
  }

  void run_block(unsigned threads) {
    meetings_.clear();
    barriers_.assign(threads, 0);
    copies_.assign(threads, {});
    std::memset(shared_.get(), 0xff, shared_bytes_);
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack = {fiber.stack.get(), 0, Fiber::kStack};
      makecontext(&fiber.context, [] { running->enter(); }, 0);
    }
    const std::vector<unsigned> turns = sequence(threads);
    for (unsigned left = threads; left > 0;) {
      moved_ = false;
      for (unsigned i : turns) {
        if (fibers_[i]->done) continue;
        thread_ = i;
        resume(*fibers_[i]);
        left -= fibers_[i]->done;
      }
      require(moved_, "threads wait for one another for ever");
    }
  }

  template <typename Ready>
  void wait(const Ready& ready) {
    const unsigned thread = thread_;
    while (!ready()) leave(*fibers_[thread], false);
    moved_ = true;
  }

  void enter() {
    Fiber& fiber = *fibers_[thread_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_stack_, &main_size_);
#endif
    kernel_(given_);
    moved_ = fiber.done = true;
    leave(fiber, true);
  }

  // These two functions tell AddressSanitizer of every change of stack.
  void resume(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), Fiber::kStack);
#endif
    swapcontext(&main_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave(Fiber& fiber, [[maybe_unused]] bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake, main_stack_, main_size_);
#endif
    swapcontext(&fiber.context, &main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void (*kernel_)(const void*) = nullptr;
  const void* given_ = nullptr;
  unsigned block_ = 0, thread_ = 0;
  bool moved_ = false;  // whether any thread has advanced since all were last resumed
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::map<std::pair<unsigned, unsigned>, Meeting> meetings_;
  std::vector<unsigned> barriers_;
  std::vector<std::vector<Copy>> copies_;  // by thread
  std::unique_ptr<char, decltype(&std::free)> shared_{nullptr, std::free};
  size_t shared_bytes_ = 0;
  ucontext_t main_;
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
};

}  // namespace emulation

#define threadIdx (Dim3{emulation::running->thread()})
#define blockIdx (Dim3{emulation::running->block()})

template <typename T>
void __stcg(T* to, T value) {
  emulation::Gpu::require(!emulation::running->is_shared(to), "a global store to shared memory");
  *to = value;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned from) {
  return emulation::running->exchange(mask, value, from);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned step) {
  return emulation::running->exchange(mask, value, (emulation::running->thread() % 32) ^ step);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
  const unsigned lane = emulation::running->thread() % 32;
  return emulation::running->exchange(mask, value, lane < step ? lane : lane - step);
}

inline unsigned __ballot_sync(unsigned mask, bool value) {
  const auto values = emulation::running->meet(mask, value);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && values[lane]) ballot |= 1u << lane;
  return ballot;
}

inline int __ffs(unsigned bits) { return bits ? __builtin_ctz(bits) + 1 : 0; }

template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

inline void __syncthreads() { emulation::running->meet_block(); }

// ---- instructions.cuh, from the description of these instructions in NVIDIA's PTX ISA -----------

namespace deform_conv {

inline void* shared_memory() { return emulation::running->shared(); }

inline void copy_async(uint4* to, const void* from) { emulation::running->start({to, from}); }

inline void wait_for_copies() { emulation::running->finish_copies(); }

inline void load_matrices(uint32_t (&to)[4], const uint4* row) {
  auto& gpu = *emulation::running;
  gpu.require(gpu.is_shared(row), "ldmatrix from what is not shared memory");
  gpu.require(reinterpret_cast<uintptr_t>(row) % 16 == 0, "a misaligned row of a matrix");
  const auto rows = gpu.meet(0xffffffffu, row);
  const unsigned lane = gpu.thread() % 32;
  for (unsigned i = 0; i < 4; ++i) {
    unsigned banks = 0;  // in groups of four
    for (unsigned r = 0; r < 8; ++r)
      banks |= 1u << reinterpret_cast<uintptr_t>(rows[8 * i + r]) / 16 % 8;
    gpu.require(banks == 0xff, "rows of a matrix share memory banks");
    std::memcpy(&to[i], reinterpret_cast<const char*>(rows[8 * i + lane / 4]) + lane % 4 * 4, 4);
  }
}

// Returns the 16-bit element `half` (0 or 1) of a register.
template <typename T>
float element(uint32_t word, unsigned half) {
  const uint16_t bits = word >> 16 * half;
  T value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

template <typename T>
uint32_t round_pair(float first, float second) {
  const T pair[2] = {static_cast<T>(first), static_cast<T>(second)};
  uint32_t word;
  std::memcpy(&word, pair, 4);
  return word;
}

template <typename T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const std::array<uint32_t, 6> mine{a[0], a[1], a[2], a[3], b0, b1};
  auto& gpu = *emulation::running;
  const auto lanes = gpu.meet(0xffffffffu, mine);
  // Element (row, k) of A: a lane's eight elements are numbered i = 0 to 7, two a register; lane
  // 4 group + t has row group for i in {0, 1, 4, 5}, else group + 8, and k = 2 t + i % 2, plus 8
  // from i = 4 on.
  const auto a_at = [&](unsigned row, unsigned k) {
    const unsigned i = k / 8 * 4 + row / 8 * 2 + k % 2;
    return element<T>(lanes[row % 8 * 4 + k % 8 / 2][i / 2], i % 2);
  };
  // Element (k, column) of B: lane 4 group + t has column group, and for i = 0 to 3
  // k = 2 t + i % 2, plus 8 from i = 2 on.
  const auto b_at = [&](unsigned k, unsigned column) {
    const unsigned i = k / 8 * 2 + k % 2;
    return element<T>(lanes[column * 4 + k % 8 / 2][4 + i / 2], i % 2);
  };
  // Element i = 0 to 3 of C: row group, plus 8 from i = 2 on, and column 2 t + i % 2.
  const unsigned group = gpu.thread() % 32 / 4, t = gpu.thread() % 4;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 16; ++k) sum[i] += a_at(group + i / 2 * 8, k) * b_at(k, 2 * t + i % 2);
}

}  // namespace deform_conv
