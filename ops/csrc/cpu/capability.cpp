#include "capability.h"

#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace deform_conv {
namespace {

struct Capability {
  std::string name;
  Table table;
  RoiTable roi_table;
};

#if defined(__x86_64__)
// Returns whether the processor has a matrix unit and the operating system grants its registers to
// this process, which has to request them.
bool may_use_amx() {
#if defined(DEFORM_CONV_EMULATE_AMX)
  return true;
#elif defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  constexpr unsigned kTile = 1 << 24, kBf16 = 1 << 22;        // in edx of CPUID leaf 7
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kBf16) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Returns the capabilities of this processor, from the least to the best. Each one keeps the
// kernels of the one before it where it has none of its own.
std::vector<Capability> find_capabilities() {
  std::vector<Capability> found{{"portable", portable::kTable, portable::kRoiTable}};
#if defined(__x86_64__)
  const auto add = [&](const char* name, const Table& table, bool has,
                       const RoiTable* roi_table = nullptr) {
    if (!has) return;
    Table merged = found.back().table;
    if (table.float32) merged.float32 = table.float32;
    if (table.float64) merged.float64 = table.float64;
    if (table.bfloat16) merged.bfloat16 = table.bfloat16;
    if (table.float32_split) merged.float32_split = table.float32_split;
    found.push_back({name, merged, roi_table ? *roi_table : found.back().roi_table});
  };
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  add("avx2", avx2::kTable, has_avx2, &avx2::kRoiTable);
  add("avx512", avx512::kTable, has_avx512, &avx512::kRoiTable);
  add("avx512_bf16", avx512_bf16::kTable, has_bf16);
  add("amx", amx::kTable, has_bf16 && may_use_amx());
#endif
  return found;
}

const std::vector<Capability>& all() {
  static const std::vector<Capability> capabilities = find_capabilities();
  return capabilities;
}

std::atomic<const Capability*>& in_use() {
  static std::atomic<const Capability*> capability = &all().back();
  return capability;
}

}  // namespace

const Table& kernels_in_use() { return in_use().load()->table; }

const RoiTable& roi_kernels_in_use() { return in_use().load()->roi_table; }

std::string capabilities() {
  std::string names;
  for (const Capability& capability : all()) names += (names.empty() ? "" : " ") + capability.name;
  return names;
}

std::string use_capability(const std::string& name) {
  for (const Capability& capability : all())
    if (capability.name == name) return in_use().exchange(&capability)->name;
  STD_TORCH_CHECK(false, "this processor has ", capabilities(), ", not ", name);
}

}  // namespace deform_conv
