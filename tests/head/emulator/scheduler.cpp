// Runs kernels on the CPU, a block at a time. The block's threads are fibers, with stacks of their own in one thread of
// the operating system. They take turns at barriers, shuffles, asynchronous copies and __ldg, in an order drawn from a
// seed. A block's shared memory begins as NaNs.
//
// These are errors: a barrier or shuffle that some threads do not reach, an asynchronous copy without a wait, and a
// launch with parameters or shared memory that the oldest of the devices does not take. An error ends the launch, which
// returns it as CUDA would. A GPU would not report the first two.
//
// AddressSanitizer and ThreadSanitizer are told about the fibers. To ThreadSanitizer, a barrier alone orders what two
// fibers do, so that it reports each pair of accesses that needs a barrier and has none.
#include "cuda_runtime.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

// The sanitizers' functions, null where the process has none.
extern "C" {
#define WEAK __attribute__((weak))
WEAK void __asan_poison_memory_region(const volatile void* begin, size_t size);
WEAK void __asan_unpoison_memory_region(const volatile void* begin, size_t size);
WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* stack, size_t size);
WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** stack, size_t* size);
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* address);
WEAK void __tsan_release(void* address);
}

// Saves the registers that a call preserves and the stack pointer in *from, and goes on at `to`.
extern "C" void emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");
#else
#error "emulator_switch is written for x86-64"
#endif

uint3 threadIdx, blockIdx;
dim3 gridDim;

namespace emulator {
namespace {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024;
constexpr size_t MOST_PARAMETER_BYTES = 4096;  // for the oldest CUDA and devices; newer ones take 32,764
constexpr int SHARED_WITHOUT_ASKING = 48 << 10;
constexpr size_t STACK = 256 << 10;

enum class State { DONE, READY, AT_BARRIER, AT_SHUFFLE };

struct Fiber {
  void* stack_pointer;
  char* stack;
  State state;
  Place place;  // where it waits
  unsigned char value[8];  // in a shuffle
  size_t size;
  int offset;
  std::vector<Copy> copies;
  size_t committed;  // of the copies
  void* fake_stack;  // AddressSanitizer's, kept from block to block
  void* tsan;
};

std::mutex running;
Fiber fibers[MOST_THREADS];
int n_threads, n_warps, n_done, n_at_barrier, current;
uint32_t ready[MOST_THREADS / WARP];  // a bit for each lane
int n_at_shuffle[MOST_THREADS / WARP];
void* main_stack_pointer;
const std::function<void()>* kernel_body;
// Shared memory in the thread that runs: all that is thread-local in the library that has the kernels. Part of it is
// dynamic, of which a launch uses the beginning.
unsigned char *shared_begin, *dynamic_begin;
size_t shared_size, dynamic_size;
size_t last_dynamic_size;  // that was not 0
std::string error;  // of the last launch that failed
bool failed;
Place left_out{"", 0};
int shared_per_multiprocessor = 228 << 10;
std::unordered_map<const void*, int> shared_limits;

// The sanitizers' view of the thread that runs the fibers, and what orders fibers to ThreadSanitizer.
void* main_tsan;
const void* main_stack;
size_t main_stack_size;
char block_begins, block_ends, barriers[2];
unsigned barrier_count;

uint64_t random_state;
uint64_t random_bits() {  // splitmix64: Steele, Lea, Flood, OOPSLA 2014
  uint64_t z = (random_state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
int random_below(int n) { return static_cast<int>((random_bits() >> 32) * n >> 32); }

// How a block chooses the next thread.
bool warp_after_warp;  // in an order of its own, instead of any warp at each turn
bool yields;
enum { ANY_LANE, FIRST_LANE, LAST_LANE } lane_choice;
int warp_order[MOST_THREADS / WARP];

void acquire(char& address) {
  if (__tsan_acquire != nullptr) __tsan_acquire(&address);
}
void release(char& address) {
  if (__tsan_release != nullptr) __tsan_release(&address);
}

void switch_to_main() {
  constexpr unsigned NO_SYNC = 1;
  if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(main_tsan, NO_SYNC);
  Fiber& fiber = fibers[current];
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(&fiber.fake_stack, main_stack, main_stack_size);
  }
  emulator_switch(&fiber.stack_pointer, main_stack_pointer);
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &main_stack, &main_stack_size);
  }
}

void switch_to(int thread) {
  constexpr unsigned NO_SYNC = 1;
  current = thread;
  threadIdx = uint3{static_cast<unsigned>(thread), 0, 0};
  const Fiber& fiber = fibers[thread];
  if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(fiber.tsan, NO_SYNC);
  void* fake = nullptr;
  if (__sanitizer_start_switch_fiber != nullptr) __sanitizer_start_switch_fiber(&fake, fiber.stack, STACK);
  emulator_switch(&main_stack_pointer, fiber.stack_pointer);
  if (__sanitizer_finish_switch_fiber != nullptr) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

void wait(State why, Place place) {
  Fiber& fiber = fibers[current];
  fiber.state = why;
  fiber.place = place;
  ready[current / WARP] &= ~(1u << current % WARP);
  switch_to_main();
}

void wake(int thread) {
  fibers[thread].state = State::READY;
  ready[thread / WARP] |= 1u << thread % WARP;
}

extern "C" void emulator_thread() {
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(fibers[current].fake_stack, &main_stack, &main_stack_size);
  }
  acquire(block_begins);
  (*kernel_body)();
  release(block_ends);
  if (!fibers[current].copies.empty()) fail("a thread ended before it waited for its asynchronous copies");
  if (n_at_barrier > 0) fail("a thread ended while others wait at a barrier");
  ++n_done;
  wait(State::DONE, {"", 0});
  std::abort();  // nothing wakes it
}

void begin_thread(int thread) {
  Fiber& fiber = fibers[thread];
  if (fiber.stack == nullptr) {
    void* const memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    fiber.stack = static_cast<char*>(memory);
    if (__tsan_create_fiber != nullptr) fiber.tsan = __tsan_create_fiber(0);
  }
  if (__asan_unpoison_memory_region != nullptr && fiber.state != State::DONE) {
    __asan_unpoison_memory_region(fiber.stack, STACK);  // a thread that did not end has left the marks of its frames
  }
  void** top = reinterpret_cast<void**>(fiber.stack + STACK) - 2;
  *--top = nullptr;  // the return address of emulator_thread; with it the stack is as after a call
  *--top = reinterpret_cast<void*>(&emulator_thread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers of emulator_switch
  fiber.stack_pointer = top;
  fiber.copies.clear();
  fiber.committed = 0;
  wake(thread);
}

// The next thread, or -1 if none is ready.
int choose_thread() {
  const int first = warp_after_warp ? 0 : random_below(n_warps);
  for (int i = 0; i < n_warps; ++i) {
    const int warp = warp_order[(first + i) % n_warps];
    const uint32_t lanes = ready[warp];
    if (lanes == 0) continue;
    const int turn = lane_choice == ANY_LANE ? random_below(WARP) : 0;
    const uint32_t turned = turn == 0 ? lanes : lanes >> turn | lanes << (WARP - turn);
    const int lane = lane_choice == LAST_LANE ? WARP - 1 - __builtin_clz(turned) : __builtin_ctz(turned);
    return warp * WARP + (turn + lane) % WARP;
  }
  return -1;
}

// Finds the thread-local memory of the library that has the kernels.
int find_shared_memory(dl_phdr_info* library, size_t, void*) {
  auto* const begin = static_cast<unsigned char*>(library->dlpi_tls_data);
  for (int i = 0; begin != nullptr && i < library->dlpi_phnum; ++i) {
    const auto& header = library->dlpi_phdr[i];
    if (header.p_type == PT_TLS && begin <= dynamic_begin && dynamic_begin < begin + header.p_memsz) {
      shared_begin = begin;
      shared_size = header.p_memsz;
    }
  }
  return 0;
}

void fill_with_nans(unsigned char* begin, size_t size) {  // a sanitizer would watch memset
  asm volatile("rep stosb" : "+D"(begin), "+c"(size) : "a"(0xff) : "memory");
}

void run_block() {
  fill_with_nans(shared_begin, shared_size);
  n_done = n_at_barrier = 0;
  std::fill(n_at_shuffle, n_at_shuffle + n_warps, 0);
  std::iota(warp_order, warp_order + n_warps, 0);
  for (int i = n_warps - 1; i > 0; --i) std::swap(warp_order[i], warp_order[random_below(i + 1)]);
  warp_after_warp = random_below(2) == 0;
  yields = random_below(2) == 0;
  const int choice = random_below(4);
  lane_choice = choice == 0 ? FIRST_LANE : choice == 1 ? LAST_LANE : ANY_LANE;
  for (int thread = 0; thread < n_threads; ++thread) begin_thread(thread);
  release(block_begins);
  while (n_done < n_threads && !failed) {
    const int thread = choose_thread();
    if (thread >= 0) {
      switch_to(thread);
    } else {
      // A barrier and a shuffle report what they can see. They cannot see that the rest of the threads wait elsewhere.
      failed = true;
      error = "deadlock: some threads wait at a barrier, others at a shuffle";
    }
  }
  acquire(block_ends);
}

}  // namespace

void fail(const char* format, ...) {
  char text[512];
  std::va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  char where[96];
  std::snprintf(where, sizeof(where), "block (%u, %u), thread %u: ", blockIdx.x, blockIdx.y, threadIdx.x);
  error = std::string(where) + text;
  failed = true;
  switch_to_main();
  std::abort();  // nothing switches back
}

bool in_shared_memory(const void* memory) {
  const auto* const byte = static_cast<const unsigned char*>(memory);
  const bool beyond = byte >= dynamic_begin + dynamic_size && byte < dynamic_begin + MOST_SHARED_MEMORY;
  return byte >= shared_begin && byte < shared_begin + shared_size && !beyond;
}

void yield() {
  if (yields && random_below(64) == 0) switch_to_main();
}

void barrier(Place place) {
  if (place.line == left_out.line && std::strstr(place.file, left_out.file) != nullptr) return;
  if (n_done > 0) fail("a barrier (%s:%d) after a thread has ended", place.file, place.line);
  char& barrier = barriers[barrier_count % 2];
  release(barrier);
  if (++n_at_barrier < n_threads) {
    wait(State::AT_BARRIER, place);
  } else {
    n_at_barrier = 0;
    ++barrier_count;
    for (int thread = 0; thread < n_threads; ++thread) {
      if (thread == current) continue;
      const Place& other = fibers[thread].place;
      if (other.line != place.line || std::strcmp(other.file, place.file) != 0) {
        fail("threads at different barriers: %s:%d and %s:%d", place.file, place.line, other.file, other.line);
      }
      wake(thread);
    }
    switch_to_main();
  }
  acquire(barrier);
}

void shuffle(void* value, size_t size, unsigned mask, int offset, Place place) {
  if (mask != ~0u || offset <= 0 || offset >= WARP || size > sizeof(Fiber::value)) {
    fail("a shuffle (%s:%d) with mask %x and offset %d", place.file, place.line, mask, offset);
  }
  const int warp = current / WARP;
  Fiber& fiber = fibers[current];
  std::memcpy(fiber.value, value, size);
  fiber.size = size;
  fiber.offset = offset;
  if (++n_at_shuffle[warp] < WARP) {
    wait(State::AT_SHUFFLE, place);
  } else {
    n_at_shuffle[warp] = 0;
    Fiber* const lanes = fibers + warp * WARP;
    unsigned char values[WARP][sizeof(Fiber::value)];
    for (int lane = 0; lane < WARP; ++lane) {
      const Fiber& other = lanes[lane];
      const bool same_place = &other == &fiber || other.place.line == place.line;
      if (!same_place || other.size != size || other.offset != offset) {
        fail("lanes at different shuffles: %s:%d and line %d", place.file, place.line, other.place.line);
      }
      std::memcpy(values[lane], other.value, sizeof(Fiber::value));
    }
    for (int lane = 0; lane < WARP; ++lane) {
      std::memcpy(lanes[lane].value, values[lane ^ offset], sizeof(Fiber::value));
      if (&lanes[lane] != &fiber) wake(warp * WARP + lane);
    }
    switch_to_main();
  }
  std::memcpy(value, fiber.value, size);
}

void add_copy(Copy copy) { fibers[current].copies.push_back(copy); }

void commit_copies() { fibers[current].committed = fibers[current].copies.size(); }

std::vector<Copy> take_copies(size_t prior) {
  Fiber& fiber = fibers[current];
  if (prior != 0) fail("the emulator can only wait for all copies");
  if (fiber.committed != fiber.copies.size()) fail("a wait for copies that are not committed");
  fiber.committed = 0;
  return std::exchange(fiber.copies, {});
}

cudaError_t set_shared_memory(const void* kernel, int bytes) {
  constexpr int RESERVED = 1 << 10;  // in each multiprocessor for each block
  if (bytes < 0 || bytes > shared_per_multiprocessor - RESERVED) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(running);
  shared_limits[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(
    const cudaLaunchConfig_t& config, const void* kernel, size_t parameter_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(running);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const bool grid_fits = grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z == 1;
  const bool block_fits = block.x > 0 && block.x <= MOST_THREADS && block.x % WARP == 0 && block.y * block.z == 1;
  const auto limit = shared_limits.find(kernel);
  const size_t most_shared = limit == shared_limits.end() ? SHARED_WITHOUT_ASKING : limit->second;
  if (!grid_fits || !block_fits || config.dynamicSmemBytes > most_shared || parameter_bytes > MOST_PARAMETER_BYTES) {
    return cudaErrorInvalidConfiguration;
  }

  dynamic_begin = dynamic_shared_memory();
  dynamic_size = config.dynamicSmemBytes;
  if (dynamic_size > 0) last_dynamic_size = dynamic_size;
  dl_iterate_phdr(find_shared_memory, nullptr);
  if (__asan_poison_memory_region != nullptr) {
    __asan_unpoison_memory_region(dynamic_begin, MOST_SHARED_MEMORY);
    __asan_poison_memory_region(dynamic_begin + dynamic_size, MOST_SHARED_MEMORY - dynamic_size);
  }
  if (__tsan_get_current_fiber != nullptr) main_tsan = __tsan_get_current_fiber();
  gridDim = grid;
  n_threads = static_cast<int>(block.x);
  n_warps = n_threads / WARP;
  kernel_body = &body;
  failed = false;
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y);
  std::iota(blocks.begin(), blocks.end(), 0);
  for (size_t i = blocks.size(); i-- > 1;) std::swap(blocks[i], blocks[random_bits() % (i + 1)]);
  for (const uint64_t i : blocks) {
    blockIdx = uint3{static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x), 0};
    run_block();
    if (failed) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace emulator

extern "C" {

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerMultiprocessor) return cudaErrorInvalidValue;
  *value = emulator::shared_per_multiprocessor;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure:
      return emulator::error.c_str();
    case cudaErrorInvalidConfiguration:
      return "a grid, a block, shared memory or parameters that no device takes";
    default:
      return "invalid argument";
  }
}

// --- For the tests, through ctypes ---

void emulator_set_seed(uint64_t seed) { emulator::random_state = seed; }

// `file` is a part of the path, and must outlive its use. Line 0 leaves out nothing.
void emulator_leave_out_barrier(const char* file, int line) { emulator::left_out = {file, line}; }

void emulator_set_shared_memory(int bytes_per_multiprocessor) {
  emulator::shared_per_multiprocessor = bytes_per_multiprocessor;
}

int emulator_shared_memory_of_main_kernel() { return static_cast<int>(emulator::last_dynamic_size); }

}  // extern "C"
