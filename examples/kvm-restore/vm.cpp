#include "vm.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "fail.h"
#include "guest.h"

namespace {

constexpr std::uint64_t kProtectionAndPaging = 0x80000001 | 0x20;  // CR0: PE, PG, NE
constexpr std::uint64_t kPhysicalAddressExtension = 1U << 5U;      // CR4
constexpr std::uint64_t kUserMayDoIo = 2 | 3U << 12U;              // RFLAGS: IOPL 3
constexpr std::uint64_t kLongMode = 1U << 8U | 1U << 10U;          // EFER: LME, LMA

int checked(int result, const char* what) {
  if (result < 0) fail(what);
  return result;
}

kvm_segment flat(std::uint8_t type, std::uint16_t selector, bool code) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.dpl = 3;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.l = code ? 1 : 0;
  segment.db = code ? 0 : 1;
  return segment;
}

/// In user mode: a KVM without help from the processor emulates everything else, instruction by instruction.
void enter_long_mode(int processor) {
  kvm_sregs registers{};
  checked(::ioctl(processor, KVM_GET_SREGS, &registers), "KVM_GET_SREGS");
  registers.cs = flat(0xb, 0x33, true);
  registers.ds = registers.es = registers.fs = registers.gs = registers.ss = flat(0x3, 0x2b, false);
  registers.cr0 = kProtectionAndPaging;
  registers.cr3 = guest::kPageTables;
  registers.cr4 = kPhysicalAddressExtension;
  registers.efer = kLongMode;
  checked(::ioctl(processor, KVM_SET_SREGS, &registers), "KVM_SET_SREGS");
}

}  // namespace

Vm::Vm(const GuestMemory& memory) {
  const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) {
    std::perror("/dev/kvm");
    std::exit(77);  // for tests: not possible here
  }
  machine_ = checked(::ioctl(kvm, KVM_CREATE_VM, 0UL), "KVM_CREATE_VM");
  kvm_userspace_memory_region region{};
  region.memory_size = memory.size;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory.start);
  checked(::ioctl(machine_, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
  processor_ = checked(::ioctl(machine_, KVM_CREATE_VCPU, 0UL), "KVM_CREATE_VCPU");
  const int size = checked(::ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL), "KVM_GET_VCPU_MMAP_SIZE");
  void* const run = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, processor_, 0);
  if (run == MAP_FAILED) fail("mapping the processor's state");
  run_ = static_cast<kvm_run*>(run);
  enter_long_mode(processor_);
}

std::uint64_t Vm::call(std::uint64_t routine, const Range& range, std::uint64_t seed, std::uint64_t mask) {
  kvm_regs registers{};
  registers.rip = routine;
  registers.rflags = kUserMayDoIo;
  registers.rdi = range.first;
  registers.rsi = range.end;
  registers.rcx = range.stride;
  registers.r8 = range.words;
  registers.rdx = seed;
  registers.r11 = guest::kFactor;
  registers.r12 = mask;
  checked(::ioctl(processor_, KVM_SET_REGS, &registers), "KVM_SET_REGS");
  do {
    if (::ioctl(processor_, KVM_RUN, 0UL) < 0 && errno != EINTR) fail("KVM_RUN");
  } while (run_->exit_reason == KVM_EXIT_INTR);
  if (run_->exit_reason != KVM_EXIT_IO || run_->io.port != guest::kDonePort) {
    std::fprintf(stderr, "kvm-restore: the guest stopped for reason %u\n", run_->exit_reason);
    std::exit(2);
  }
  checked(::ioctl(processor_, KVM_GET_REGS, &registers), "KVM_GET_REGS");
  return registers.rax;
}

std::uint64_t Vm::verify(const Range& range, std::uint64_t seed, Holds holds) {
  return call(guest::verify_routine(), range, seed, holds == Holds::pattern ? ~std::uint64_t{0} : 0);
}

void Vm::fill(const Range& range, std::uint64_t seed) { call(guest::fill_routine(), range, seed, 0); }
