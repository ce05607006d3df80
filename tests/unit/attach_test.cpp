// What /proc tells of a process that waits, and what becomes of its memory.
#include "server/attach.h"
#include "os/other_process.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/operate_commands.h"
#include "server/activation.h"
#include "server/fd_store.h"

namespace uffda {
namespace {

using testing::HasSubstr;

constexpr const char* kSmaps =
    "7f0000000000-7f0000010000 rw-p 00000000 00:00 0 \n"
    "Size:                 64 kB\nKernelPageSize:        4 kB\nVmFlags: rd wr mr mw me ac um sd \n"
    "7f0000010000-7f0000020000 rw-p 00000000 00:00 0 \n"
    "KernelPageSize:        4 kB\nVmFlags: rd wr mr mw me ac sd \n"
    "7f0000200000-7f0000600000 rw-s 00001000 00:01 1024                       /memfd:guest (deleted)\n"
    "KernelPageSize:     2048 kB\nVmFlags: rd wr um uw \n"
    "7f0000600000-7f0000700000 r--p 00000000 08:01 77 /usr/lib/um ui\n"
    "KernelPageSize:        4 kB\nVmFlags: rd mr ui\n"
    "garbage\nVmFlags: um\n";

TEST(TrappedRanges, AreThoseWithTheFlagsOfAUserfaultfd) {
  const auto ranges = os::parse_trapped_ranges(kSmaps);
  ASSERT_EQ(ranges.size(), 3U);
  EXPECT_EQ(ranges[0].start, Address{0x7f0000000000});
  EXPECT_EQ(ranges[0].length, ByteCount{0x10000});
  EXPECT_EQ(ranges[0].page_size, kPageSize);
  EXPECT_EQ(ranges[0].name, "");
  EXPECT_FALSE(ranges[0].minor || ranges[0].write_protect);
  EXPECT_EQ(ranges[1].page_size, 2_MiB);
  EXPECT_TRUE(ranges[1].write_protect);
  EXPECT_EQ(ranges[1].name, "/memfd:guest (deleted)");
  EXPECT_TRUE(ranges[2].minor);
}

TEST(UserfaultInfos, TellFeaturesAndFaultsThatWereRead) {
  const auto info =
      os::parse_userfault_info("pos:\t0\nflags:\t02004002\npending:\t1\ntotal:\t3\nAPI:\taa:80000008:1ff\n");
  ASSERT_TRUE(info);
  EXPECT_EQ(info->features, 8U) << "the kernel's own bit is none of them";
  EXPECT_EQ(info->waiting, 3U);
  EXPECT_EQ(info->forgotten, 2U);
  EXPECT_FALSE(os::parse_userfault_info("pos:\t0\nflags:\t02\n"));
  EXPECT_FALSE(os::parse_userfault_info("API:\tgarbage\n"));
}

std::vector<os::TrappedRange> trapped() { return os::parse_trapped_ranges(kSmaps); }

NamedRange named(std::uint64_t start, std::uint64_t end, std::uint64_t offset = 0) {
  return {.start = {start}, .length = {end - start}, .name = "source-1", .offset = {offset}};
}

TEST(AttachPlans, ServeWhatIsNamedAndTrapped) {
  const auto plan = plan_attach({named(0x7f0000004000, 0x7f0000018000, 0x1000)}, trapped());
  ASSERT_TRUE(plan) << plan.error().message();
  ASSERT_EQ(plan->served.size(), 1U);
  EXPECT_EQ(plan->served[0].start, Address{0x7f0000004000});
  EXPECT_EQ(plan->served[0].length, ByteCount{0xc000});
  EXPECT_EQ(plan->served[0].offset, ByteOffset{0x1000});
  ASSERT_EQ(plan->left.size(), 1U) << "named, and the kernel's";
  EXPECT_EQ(plan->left[0].start, Address{0x7f0000010000});
  EXPECT_EQ(plan->left[0].length, ByteCount{0x8000});
  ASSERT_EQ(plan->unnamed.size(), 3U);
  EXPECT_EQ(plan->unnamed[0].length, ByteCount{0x4000});
}

TEST(AttachPlans, KeepTheOffsetOfAPartThatIsLeft) {
  const auto plan = plan_attach({named(0x7effffff0000, 0x7f0000010000, 0)}, trapped());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->served.at(0).offset, ByteOffset{0x10000});
}

TEST(AttachPlans, SayWhatIsWrong) {
  const auto refusal = [](std::vector<NamedRange> ranges) {
    const auto plan = plan_attach(std::move(ranges), trapped());
    EXPECT_FALSE(plan) << "was accepted";
    return plan ? "" : plan.error().message();
  };
  EXPECT_THAT(refusal({named(0x1000, 0x2000)}), HasSubstr("nothing of what is named is registered"));
  EXPECT_THAT(refusal({named(0x1000, 0x1800)}), HasSubstr("whole pages"));
  EXPECT_THAT(refusal({named(0x1000, 0x3000), named(0x2000, 0x4000)}), HasSubstr("overlap"));
  EXPECT_THAT(refusal({named(0x7f0000600000, 0x7f0000700000)}), HasSubstr("registered MINOR"));
  EXPECT_THAT(refusal({named(0x7f0000000000, 0x7f0000600000)}), HasSubstr("two sizes"));
}

TEST(AttachMaps, AreAddressesASourceAndAnOffset) {
  const auto map = cli::parse_attach_map("7f00-0xff00=pack:a=b@c.pack@2M");
  ASSERT_TRUE(map) << map.error().message();
  EXPECT_EQ(map->start, Address{0x7f00});
  EXPECT_EQ(map->length, ByteCount{0x8000});
  EXPECT_EQ(map->uri, "pack:a=b@c.pack");
  EXPECT_EQ(map->offset, ByteOffset{2U << 20U});
  EXPECT_EQ(cli::parse_attach_map("0-1000=http://me@host/x")->uri, "http://me@host/x");
  for (const char* wrong : {"", "=", "1-2", "1000=x", "2-1=x", "g-h=x", "1-2=", "1000-=file:x"})
    EXPECT_FALSE(cli::parse_attach_map(wrong)) << wrong;
}

TEST(Processes, AreKnownAgainByMoreThanTheirPid) {
  const auto self = os::open_process(::getpid());
  ASSERT_TRUE(self) << self.error().message();
  const std::uint64_t identity = os::identity_of(*self);
  EXPECT_TRUE(os::open_process_again(::getpid(), identity));
  const auto other = os::open_process_again(::getpid(), identity + 1);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code(), Errc::not_found);
}

Result<std::vector<PassedSocket>> sockets(const char* pid, const char* count, const char* names) {
  return parse_passed(passed_descriptors(42, pid, count, names));
}

TEST(PassedSockets, AreNamedByProtocol) {
  const auto passed = sockets("42", "3", "firecracker:uffda-9:handoff");
  ASSERT_TRUE(passed) << passed.error().message();
  ASSERT_EQ(passed->size(), 2U);
  EXPECT_EQ(passed->at(0).protocol, Protocol::firecracker);
  EXPECT_EQ(passed->at(0).fd, 3);
  EXPECT_EQ(passed->at(1).protocol, Protocol::handoff);
  EXPECT_EQ(passed->at(1).fd, 5) << "what is stored has a number, too";
  EXPECT_EQ(sockets("43", "1", "handoff").error().code(), Errc::not_found) << "another process's";
  EXPECT_EQ(sockets("42", "", "").error().code(), Errc::not_found);
  EXPECT_EQ(sockets("42", "1", "uffda-3").error().code(), Errc::not_found);
  EXPECT_THAT(sockets("42", "1", "unknown").error().message(), HasSubstr("FileDescriptorName=handoff"));
  EXPECT_THAT(sockets("42", "2", "handoff").error().message(), HasSubstr("FileDescriptorName=handoff"));
  EXPECT_THAT(sockets("42", "2", "handoff:handoff").error().message(), HasSubstr("two sockets"));
}

TEST(PassedDescriptors, AreNoMoreThanHaveNames) {
  EXPECT_EQ(passed_descriptors(42, "42", "2147483647", "uffda-5:uffda-6").size(), 3U) << "and one without";
  EXPECT_EQ(passed_descriptors(42, "42", "1", "uffda-5:uffda-6").size(), 1U);
}

TEST(StoredDescriptors, AreNamedByTheirNumbers) {
  const auto stored = parse_stored(passed_descriptors(42, "42", "3", "uffda-9:handoff:uffda-kept-7"));
  ASSERT_TRUE(stored) << stored.error().message();
  ASSERT_EQ(stored->size(), 2U);
  EXPECT_EQ(stored->at(0).number, 9);
  EXPECT_EQ(stored->at(0).fd, 3);
  EXPECT_FALSE(stored->at(0).is_memory);
  EXPECT_EQ(stored->at(1).number, 7);
  EXPECT_EQ(stored->at(1).fd, 5);
  EXPECT_TRUE(stored->at(1).is_memory);
  for (const char* wrong : {"uffda-", "uffda-2", "uffda--9", "uffda-2147483647", "uffda-kept-", "uffda-9x"})
    EXPECT_FALSE(parse_stored(passed_descriptors(42, "42", "1", wrong))) << wrong;
}

TEST(StoredDescriptors, AManagerThatTakesNothingIsNotWaitedForEver) {
  const os::UniqueFd manager(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const std::string path = fmt::format("@uffda-test-{}", ::getpid());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, path.size());
  address.sun_path[0] = 0;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  ASSERT_EQ(::bind(manager.get(), reinterpret_cast<const sockaddr*>(&address), size), 0);
  ::setenv("NOTIFY_SOCKET", path.c_str(), 1);  // NOLINT(concurrency-mt-unsafe): there is one thread
  const std::vector<std::string> more_than_wait(10'000, "uffda-9");
  const auto forgotten = forget_stored(more_than_wait);
  ::unsetenv("NOTIFY_SOCKET");  // NOLINT(concurrency-mt-unsafe): as above
  ASSERT_FALSE(forgotten);
  EXPECT_EQ(forgotten.error().code(), Errc::timed_out);
  EXPECT_THAT(forgotten.error().message(), HasSubstr("takes nothing"));
}

}  // namespace
}  // namespace uffda
