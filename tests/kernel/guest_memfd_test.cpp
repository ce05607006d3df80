// guest_memfd: what cannot be fetched on touch is refused with the reason, and a real guest reads what was populated.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "os/guest_memory.h"
#include "os/kernel_abi.h"
#include "os/memory.h"
#include "support/mm_kernel.h"
#include "support/mm_tickets.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::Pattern;
using test::pattern_source;

constexpr std::uint64_t kCode = 0x1000;
constexpr std::uint64_t kData = 0x2000;
constexpr std::uint64_t kMemory = 0x10000;
constexpr std::uint16_t kPort = 0x10;

/// Real mode: adds the bytes from kData to kMemory up, puts the sum out, halts.
constexpr std::array<unsigned char, 24> kProgram{
    0x66, 0x31, 0xC0,  // xor eax, eax
    0xBE, 0x00, 0x20,  // mov si, kData
    0xB9, 0x00, 0xE0,  // mov cx, kMemory - kData
    0x66, 0x31, 0xD2,  // xor edx, edx
    0x8A, 0x14,        // next: mov dl, [si]
    0x66, 0x01, 0xD0,  // add eax, edx
    0x46,              // inc si
    0xE2, 0xF8,        // loop next
    0x66, 0xE7, 0x10,  // out kPort, eax
    0xF4,              // hlt
};

/// A machine with one processor and the memory that a test gives it.
class Guest {
 public:
  Guest() : kvm_(::open("/dev/kvm", O_RDWR | O_CLOEXEC)) {
    if (kvm_) machine_.reset(::ioctl(kvm_.get(), KVM_CREATE_VM, 0));
  }
  [[nodiscard]] int machine() const { return machine_.get(); }
  bool set_memory(const void* at) {
    kvm_userspace_memory_region region{};
    region.memory_size = kMemory;
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(at);
    return ::ioctl(machine_.get(), KVM_SET_USER_MEMORY_REGION, &region) == 0;
  }
  bool set_memory(const void* at, int guest_memfd) {
    kvm_userspace_memory_region2 region{};
    region.flags = KVM_MEM_GUEST_MEMFD;
    region.memory_size = kMemory;
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(at);
    region.guest_memfd = static_cast<std::uint32_t>(guest_memfd);
    return ::ioctl(machine_.get(), KVM_SET_USER_MEMORY_REGION2, &region) == 0;
  }
  /// Runs from kCode on, to the first value that is put out at kPort.
  std::optional<std::uint32_t> run() {
    const os::UniqueFd cpu(::ioctl(machine_.get(), KVM_CREATE_VCPU, 0));
    const int length = ::ioctl(kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
    if (!cpu || length <= 0) return std::nullopt;
    const auto shared =
        os::map_memory({static_cast<std::uint64_t>(length)}, PROT_READ | PROT_WRITE, MAP_SHARED, cpu.get());
    kvm_sregs special{};
    if (!shared || ::ioctl(cpu.get(), KVM_GET_SREGS, &special) != 0) return std::nullopt;
    special.cs.base = 0;
    special.cs.selector = 0;
    kvm_regs registers{};
    registers.rip = kCode;
    registers.rflags = 2;
    if (::ioctl(cpu.get(), KVM_SET_SREGS, &special) != 0 || ::ioctl(cpu.get(), KVM_SET_REGS, &registers) != 0 ||
        ::ioctl(cpu.get(), KVM_RUN, 0) != 0)
      return std::nullopt;
    const auto* exit = reinterpret_cast<const kvm_run*>(shared->bytes().data());
    if (exit->exit_reason != KVM_EXIT_IO || exit->io.port != kPort) return std::nullopt;
    std::uint32_t value = 0;
    std::memcpy(&value, shared->bytes().data() + exit->io.data_offset, sizeof value);
    return value;
  }

 private:
  os::UniqueFd kvm_;
  os::UniqueFd machine_;
};

class GuestMemfd : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
    const auto possible = os::create_guest_memfd(kPageSize, os::kThrowAwayMachine);
    if (!possible) GTEST_SKIP() << possible.error().message();
    auto engine = Engine::create();
    ASSERT_TRUE(engine);
    engine_.emplace(std::move(*engine));
  }
  /// Memory of a guest that holds the program and data.
  Result<Memory> map_program(const std::string& type) {
    std::vector<std::byte> image(kMemory);
    Pattern::fill(image, 0);
    std::ranges::copy(std::as_bytes(std::span(kProgram)), image.begin() + kCode);
    sum_ = std::accumulate(image.begin() + kData, image.end(), 0U,
                           [](unsigned sum, std::byte byte) { return sum + static_cast<unsigned>(byte); });
    auto source = test::answering_source({kMemory}, [image](FetchTicket ticket) {
      const ByteRange range = ticket.range();
      std::ranges::copy(std::span(image).subspan(range.start.value, range.length.value), ticket.buffer().begin());
      std::move(ticket).complete(range.length);
    });
    return engine_->map(std::move(source), {.type = type, .populate = Populate::first});
  }
  std::optional<Engine> engine_;
  std::uint32_t sum_ = 0;
};

TEST_F(GuestMemfd, FetchingOnTouchIsRefusedWithTheReason) {
  const auto memory = engine_->map(pattern_source(64_KiB), {.type = "guest_memfd"});
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), Errc::unsupported);
  const std::string said = memory.error().message();
  for (const char* word : {"guest_memfd", "missing or minor faults", "Populate::first"})
    EXPECT_NE(said.find(word), std::string::npos) << said;
}

TEST_F(GuestMemfd, PopulatedMemoryIsTheSourcesAndIsNeverEvicted) {
  const ByteCount size{5'000'003};
  const auto memory = engine_->map(pattern_source(size), {.type = "guest_memfd", .populate = Populate::first});
  ASSERT_TRUE(memory) << memory.error().message();
  EXPECT_EQ(engine_->report().bytes_fetched, size) << "all of it, before it was mapped";
  EXPECT_EQ(Pattern::mismatch(memory->bytes(), 0), std::nullopt);
  const auto again = memory->map_again(Access::read_only);
  ASSERT_TRUE(again);
  EXPECT_EQ(Pattern::mismatch(again->bytes(), 0), std::nullopt);
  EXPECT_EQ(engine_->report().folios_evicted, 0U);
}

TEST_F(GuestMemfd, ASourceThatFailsMapsNothing) {
  testing::internal::CaptureStderr();
  const auto memory = engine_->map(test::answering_source(1_MiB,
                                                          [](FetchTicket ticket) {
                                                            if (ticket.range().end().value > 900'000)
                                                              return std::move(ticket).fail(Error(Errc::io));
                                                            test::answer(std::move(ticket));
                                                          }),
                                   {.type = "guest_memfd", .populate = Populate::first});
  testing::internal::GetCapturedStderr();
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), Errc::io);
}

TEST_F(GuestMemfd, MoreThanTheResidentLimitIsRefused) {
  auto small = Engine::create({.budget = 1_MiB});
  ASSERT_TRUE(small);
  const auto memory = small->map(pattern_source(2_MiB), {.type = "guest_memfd", .populate = Populate::first});
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), Errc::no_memory);
}

TEST_F(GuestMemfd, APrivateMappingIsRefusedWithTheReason) {
  const auto memory = engine_->map(pattern_source(64_KiB),
                                   {.access = Access::private_, .type = "guest_memfd", .populate = Populate::first});
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), Errc::unsupported);
  EXPECT_NE(memory.error().message().find("cannot be mapped privately"), std::string::npos) << memory.error().message();
}

TEST_F(GuestMemfd, AGuestReadsItByItsAddress) {
  const auto memory = map_program("guest_memfd");
  ASSERT_TRUE(memory) << memory.error().message();
  Guest guest;
  ASSERT_TRUE(guest.set_memory(memory->bytes().data()));
  EXPECT_EQ(guest.run(), sum_);
}

TEST_F(GuestMemfd, AGuestReadsItByTheDescriptorOfItsOwnMachine) {
  Guest guest;
  const auto memory = map_program("guest_memfd?vm=" + std::to_string(guest.machine()));
  ASSERT_TRUE(memory) << memory.error().message();
  ASSERT_TRUE(guest.set_memory(memory->bytes().data(), memory->descriptor()));
  EXPECT_EQ(guest.run(), sum_);
}

TEST_F(GuestMemfd, ADescriptorThatIsNoMachineIsRefused) {
  const auto memory = map_program("guest_memfd?vm=0");
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), Errc::invalid_argument) << memory.error().message();
}

TEST(PopulateFirst, AFaultableTypeIsAllThereBeforeItIsMapped) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  auto engine = Engine::create();
  ASSERT_TRUE(engine);
  const auto memory = engine->map(pattern_source(3_MiB), {.populate = Populate::first});
  ASSERT_TRUE(memory) << memory.error().message();
  EXPECT_EQ(engine->report().bytes_fetched, 3_MiB);
  EXPECT_EQ(Pattern::mismatch(memory->bytes(), 0), std::nullopt);
  EXPECT_EQ(engine->report().faults_missing, 0U);
  const auto uncached = engine->map(pattern_source(3_MiB), {.type = "anon", .populate = Populate::first});
  ASSERT_FALSE(uncached);
  EXPECT_EQ(uncached.error().code(), Errc::unsupported);
}

}  // namespace
}  // namespace uffda
