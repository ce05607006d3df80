// The topics of the kernel's own userfaultfd tests, a script for each, on every type: the kernel and uffda must agree
// on every step. And what a script cannot say: resolutions while an event is unread, and memory that the kernel's
// userfaultfd refuses.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <future>
#include <thread>

#include "conformance/script.h"
#include "os/fd.h"
#include "os/kernel_abi.h"
#include "support/test_support.h"

namespace uffda::conformance {
namespace {

constexpr std::int64_t kAll = kPages;
constexpr std::uint64_t kMissing = UFFDIO_REGISTER_MODE_MISSING;
constexpr std::uint64_t kWp = UFFDIO_REGISTER_MODE_WP;
constexpr std::uint64_t kMinor = UFFDIO_REGISTER_MODE_MINOR;

Step all_of(std::uint64_t modes) { return {.op = Op::register_range, .count = kAll, .modes = modes}; }

struct Topic {
  std::string name;
  Script script;
};

std::vector<Topic> topics() {
  constexpr ResolveFlags kProtect = ResolveFlag::wp;
  constexpr ResolveFlags kHoles = ResolveFlag::allow_src_holes;
  std::vector<Topic> all;
  Script ioctls;
  for (std::uint64_t modes = 0; modes <= 8; ++modes) {
    ioctls.push_back(all_of(modes));
    ioctls.push_back({.op = Op::unregister_range, .count = kAll});
  }
  all.push_back({"register_ioctls", ioctls});
  all.push_back({"zeropage",
                 {{.op = Op::zeropage, .page = 1},
                  all_of(kMissing),
                  {.op = Op::read, .page = 1},
                  {.op = Op::zeropage, .page = 1},
                  {.op = Op::zeropage, .page = 0, .count = 4},
                  {.op = Op::write, .page = 0, .value = 9},
                  {.op = Op::zeropage, .page = 2, .count = 9}}});
  all.push_back({"move",
                 {all_of(kMissing),
                  {.op = Op::copy, .page = 4, .count = 2, .value = 7},
                  {.op = Op::move, .page = 0, .count = 2, .from = 4},
                  {.op = Op::move, .page = 2, .count = 2, .from = 4, .flags = kHoles},
                  {.op = Op::move, .page = 2, .count = 3, .from = 8},
                  {.op = Op::move, .page = 0, .count = 1, .from = 9},
                  {.op = Op::read, .page = 0},
                  {.op = Op::read, .page = 4, .thread = 1}}});
  all.push_back({"wp_unpopulated",
                 {all_of(kWp),
                  {.op = Op::writeprotect, .count = kAll, .flags = kProtect},
                  {.op = Op::write, .page = 3, .value = 5},
                  {.op = Op::read, .page = 4, .thread = 1},
                  {.op = Op::write, .page = 4, .value = 6, .thread = 1},
                  {.op = Op::writeprotect, .page = 3},
                  {.op = Op::writeprotect, .page = 4}}});
  all.push_back({"minor",
                 {{.op = Op::other_write, .page = 2, .value = 8},
                  all_of(kMinor),
                  {.op = Op::continue_, .page = 1},
                  {.op = Op::read, .page = 2},
                  {.op = Op::other_write, .page = 2, .value = 9},
                  {.op = Op::continue_, .page = 2},
                  {.op = Op::continue_, .page = 2},
                  {.op = Op::read, .page = 1, .thread = 1}}});
  all.push_back({"minor_wp",
                 {{.op = Op::other_write, .page = 2, .value = 8},
                  all_of(kMinor | kWp),
                  {.op = Op::read, .page = 2},
                  {.op = Op::continue_, .page = 2, .flags = kProtect},
                  {.op = Op::write, .page = 2, .value = 9},
                  {.op = Op::writeprotect, .page = 2},
                  {.op = Op::other_read, .page = 2}}});
  all.push_back({"events",
                 {all_of(kMissing),
                  {.op = Op::copy, .count = kAll, .value = 3},
                  {.op = Op::dontneed, .page = 2, .count = 2},
                  {.op = Op::read, .page = 2},
                  {.op = Op::copy, .page = 2, .value = 4},
                  {.op = Op::remap},
                  {.op = Op::read, .page = 5},
                  {.op = Op::replace, .page = 6},
                  {.op = Op::read, .page = 6}}});
  all.push_back({"events_wp",
                 {all_of(kMissing | kWp),
                  {.op = Op::copy, .count = kAll, .flags = kProtect, .value = 3},
                  {.op = Op::write, .page = 1, .value = 4},
                  {.op = Op::dontneed, .page = 1, .count = 2},
                  {.op = Op::remove, .page = 4},
                  {.op = Op::read, .page = 4, .thread = 1}}});
  all.push_back({"poison",
                 {all_of(kMissing),
                  {.op = Op::read, .page = 1},
                  {.op = Op::poison, .page = 0, .count = 3},
                  {.op = Op::poison, .page = 2},
                  {.op = Op::zeropage, .page = 2},
                  {.op = Op::copy, .page = 2, .value = 6},
                  {.op = Op::read, .page = 2},
                  {.op = Op::read, .page = 0},
                  {.op = Op::dontneed, .page = 0}}});
  // What a fork leaves to the parent; what it leaves to the child is said in docs/design/monitors.md.
  all.push_back({"wp_fork",
                 {all_of(kMissing | kWp),
                  {.op = Op::copy, .count = kAll, .value = 3},
                  {.op = Op::writeprotect, .count = 2, .flags = kProtect},
                  {.op = Op::read, .page = 1},
                  {.op = Op::fork},
                  {.op = Op::read, .page = 1},
                  {.op = Op::write, .page = 1, .value = 4},
                  {.op = Op::write, .page = 2, .value = 5, .thread = 1},
                  {.op = Op::fork},
                  {.op = Op::writeprotect, .page = 1},
                  {.op = Op::read, .page = 0},
                  {.op = Op::write, .page = 0, .value = 6}}});
  return all;
}

/// Faults that are no messages.
std::vector<Topic> sigbus_topics() {
  constexpr ResolveFlags kProtect = ResolveFlag::wp;
  return {{"sigbus",
           {{.op = Op::read, .page = 7},
            {.op = Op::write, .page = 6, .value = 9},
            all_of(kMissing),
            {.op = Op::read, .page = 1},
            {.op = Op::write, .page = 2, .value = 4},
            {.op = Op::read, .page = 7},
            {.op = Op::copy, .page = 1, .count = 2, .value = 3},
            {.op = Op::read, .page = 1},
            {.op = Op::write, .page = 2, .value = 4},
            {.op = Op::zeropage, .page = 3},
            {.op = Op::read, .page = 3},
            {.op = Op::dontneed, .page = 1},
            {.op = Op::read, .page = 1},
            {.op = Op::other_write, .page = 5, .value = 8},
            {.op = Op::read, .page = 5},
            {.op = Op::unregister_range, .count = kAll},
            {.op = Op::read, .page = 4}}},
          {"sigbus_minor",
           {{.op = Op::other_write, .page = 2, .value = 8},
            all_of(kMinor),
            {.op = Op::read, .page = 2},
            {.op = Op::continue_, .page = 2},
            {.op = Op::read, .page = 2},
            {.op = Op::read, .page = 3}}},
          {"sigbus_wp",
           {all_of(kMissing | kWp),
            {.op = Op::copy, .count = 4, .flags = kProtect, .value = 3},
            {.op = Op::read, .page = 1},
            {.op = Op::write, .page = 1, .value = 4},
            {.op = Op::writeprotect, .page = 1},
            {.op = Op::write, .page = 1, .value = 4},
            {.op = Op::writeprotect, .page = 6, .flags = kProtect},
            {.op = Op::read, .page = 6},
            {.op = Op::write, .page = 6, .value = 7}}}};
}

/// Writes that are found afterwards.
std::vector<Topic> wp_async_topics() {
  constexpr ResolveFlags kProtect = ResolveFlag::wp;
  return {{"wp_async",
           {all_of(kWp),
            {.op = Op::scan, .count = kAll},
            {.op = Op::write, .page = 1, .value = 4},
            {.op = Op::write, .page = 2, .value = 4, .thread = 1},
            {.op = Op::read, .page = 3},
            {.op = Op::scan, .count = kAll},
            {.op = Op::scan, .count = 2, .flags = kProtect},
            {.op = Op::scan, .count = kAll, .flags = kProtect},
            {.op = Op::scan, .count = kAll},
            {.op = Op::write, .page = 1, .value = 5},
            {.op = Op::read, .page = 1},
            {.op = Op::write, .page = 7, .value = 5},
            {.op = Op::scan, .count = kAll, .flags = kProtect},
            {.op = Op::writeprotect, .page = 4},
            {.op = Op::scan, .count = kAll},
            {.op = Op::writeprotect, .page = 4, .flags = kProtect},
            {.op = Op::scan, .count = kAll},
            {.op = Op::unregister_range, .count = kAll},
            {.op = Op::scan, .count = kAll},
            {.op = Op::write, .page = 7, .value = 6}}},
          {"wp_async_missing",
           {all_of(kMissing | kWp),
            {.op = Op::write, .page = 1, .value = 4},
            {.op = Op::copy, .page = 1, .value = 3},
            {.op = Op::copy, .page = 2, .flags = kProtect, .value = 3},
            {.op = Op::read, .page = 2},
            {.op = Op::scan, .count = kAll, .flags = kProtect},
            {.op = Op::write, .page = 2, .value = 4},
            {.op = Op::scan, .count = kAll}}},
          // Other modes than wp alone are refused of memory that raises no faults.
          {"wp_async_modes",
           {all_of(kMissing),
            all_of(kMinor),
            all_of(kMissing | kWp),
            {.op = Op::unregister_range, .count = kAll},
            all_of(kWp),
            {.op = Op::copy, .value = 1},
            {.op = Op::zeropage},
            {.op = Op::continue_},
            {.op = Op::poison}}}};
}

std::vector<Kind> wp_async_kinds() {
  std::vector<Kind> all = kinds_with(UffdFeature::wp_async, "");
  all.push_back({"guest_memfd", "guest_memfd", kPageSize, Access::shared, all.front().features});
  return all;
}

class Topics : public testing::TestWithParam<std::tuple<Kind, Topic>> {};

TEST_P(Topics, IsTheSameOnTheKernelAndHere) {
  const auto& [kind, topic] = GetParam();
  const Pages pages(kind);
  if (!pages.why.empty()) GTEST_SKIP() << pages.why;
  std::string why;
  if (!kernel_world(kind, why) || !uffda_world(kind, why)) GTEST_SKIP() << why;
  const auto found = difference(topic.script, kind, run_uffda);
  EXPECT_FALSE(found) << show(found, "uffda");
}

constexpr auto kNameOf = [](const testing::TestParamInfo<Topics::ParamType>& info) {
  return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
};
INSTANTIATE_TEST_SUITE_P(OfTheKernel, Topics, testing::Combine(testing::ValuesIn(kinds()), testing::ValuesIn(topics())),
                         kNameOf);
INSTANTIATE_TEST_SUITE_P(WithSigbus, Topics,
                         testing::Combine(testing::ValuesIn(kinds_with(UffdFeature::sigbus, "")),
                                          testing::ValuesIn(sigbus_topics())),
                         kNameOf);
INSTANTIATE_TEST_SUITE_P(WithWpAsync, Topics,
                         testing::Combine(testing::ValuesIn(wp_async_kinds()), testing::ValuesIn(wp_async_topics())),
                         kNameOf);

class Monitor : public testing::Test {
 protected:
  void SetUp() override {
    auto engine = Engine::create({.monitors = kFeatures});
    if (!engine) GTEST_SKIP() << engine.error().message();
    engine_.emplace(std::move(*engine));
  }
  static Address address(const Memory& memory, std::uint64_t page) {
    return {reinterpret_cast<std::uintptr_t>(memory.bytes().data()) + page * kPageSize.value};
  }
  static Deadline soon() { return Deadline::after(std::chrono::seconds(20)); }
  std::optional<Engine> engine_;
};

TEST_F(Monitor, NothingIsResolvedWhileAnEventIsUnread) {
  auto memory = engine_->map("zero:64K", {.access = Access::shared});
  auto monitor = Userfault::open(*engine_, kFeatures);
  ASSERT_TRUE(memory && monitor);
  const Address start = address(*memory, 0);
  ASSERT_TRUE(monitor->register_range(start, 64_KiB, UffdMode::missing));
  pollfd polled{.fd = monitor->fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&polled, 1, 0), 0);
  ASSERT_EQ(::madvise(memory->writable_bytes().data(), kPageSize.value, MADV_DONTNEED), 0);
  ASSERT_EQ(::poll(&polled, 1, 20'000), 1);
  const UffdOutcome early = monitor->zeropage(start, kPageSize, {});
  EXPECT_EQ(early.error, EAGAIN);
  EXPECT_EQ(early.done, -EAGAIN);
  EXPECT_EQ(monitor->writeprotect(start, kPageSize, {}).error, EAGAIN);
  std::array<uffd_msg, 4> messages{};
  ASSERT_EQ(monitor->read(messages, soon()), 1U);
  EXPECT_EQ(messages[0].event, UFFD_EVENT_REMOVE);
  EXPECT_EQ(::poll(&polled, 1, 0), 0);
  EXPECT_EQ(monitor->zeropage(start, kPageSize, {}).error, 0);
}

TEST_F(Monitor, WatchesMemoryThatTheKernelsUserfaultfdRefuses) {
  // A mapped file of a disk: the kernel says EINVAL to every mode.
  std::string path = testing::TempDir() + "uffda_monitor_XXXXXX";
  const os::UniqueFd file(::mkstemp(path.data()));
  ASSERT_TRUE(file);
  std::vector<std::byte> contents(64 * 1024);
  test::Pattern::fill(contents, 0);
  ASSERT_EQ(::write(file.get(), contents.data(), contents.size()), static_cast<ssize_t>(contents.size()));
  auto memory = engine_->map("file:" + path);
  ::unlink(path.c_str());
  auto monitor = Userfault::open(*engine_, {});
  ASSERT_TRUE(memory && monitor);
  const Address start = address(*memory, 0);
  // Cached and absent pages tell themselves apart; what is not asked for comes from the file.
  ASSERT_TRUE(memory->populate({.start = {0}, .length = kPageSize}, soon()));
  ASSERT_TRUE(monitor->register_range(start, kPageSize * 4, {UffdMode::missing, UffdMode::minor}));
  const auto touch = [&](std::uint64_t page) {
    return std::async(std::launch::async, [at = memory->bytes().data() + page * kPageSize.value] {
      return *const_cast<const volatile std::byte*>(at);
    });
  };
  std::array<uffd_msg, 4> messages{};
  auto cached = touch(0);
  ASSERT_EQ(monitor->read(messages, soon()), 1U);
  EXPECT_EQ(messages[0].arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_MINOR);
  EXPECT_EQ(messages[0].arg.pagefault.address, start.value);
  EXPECT_EQ(messages[0].arg.pagefault.feat.ptid, 0U) << "nobody asked for threads";
  EXPECT_EQ(monitor->copy(start, contents.data(), kPageSize, {}).error, EEXIST);
  EXPECT_EQ(monitor->continue_(start, kPageSize, {}).error, 0);
  EXPECT_EQ(cached.get(), test::Pattern::at(0));
  auto absent = touch(1);
  ASSERT_EQ(monitor->read(messages, soon()), 1U);
  EXPECT_EQ(messages[0].arg.pagefault.flags, 0U);
  EXPECT_EQ(monitor->continue_(start + kPageSize, kPageSize, {}).error, EFAULT);
  const std::vector<std::byte> other(4096, std::byte{42});
  EXPECT_EQ(monitor->copy(start + kPageSize, other.data(), kPageSize, {}).error, 0);
  EXPECT_EQ(absent.get(), std::byte{42});
  EXPECT_EQ(memory->bytes()[10 * kPageSize.value], test::Pattern::at(10 * kPageSize.value)) << "not watched";
  // Another mapping sees what the monitor put there; a monitor that goes leaves the rest to the file.
  auto again = memory->map_again(Access::read_only);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->bytes()[kPageSize.value], std::byte{42});
  auto left = touch(2);
  ASSERT_EQ(monitor->read(messages, soon()), 1U);
  {
    const Userfault gone = std::move(*monitor);
  }
  EXPECT_EQ(left.get(), test::Pattern::at(2 * kPageSize.value));
}

TEST_F(Monitor, TwoMonitorsShareNoPage) {
  auto memory = engine_->map("zero:64K");
  auto one = Userfault::open(*engine_, {});
  auto two = Userfault::open(*engine_, {});
  ASSERT_TRUE(memory && one && two);
  const Address start = address(*memory, 0);
  ASSERT_TRUE(one->register_range(start, kPageSize * 2, UffdMode::missing));
  const auto refused = two->register_range(start + kPageSize, kPageSize * 2, UffdMode::missing);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().sys_errno(), EBUSY);
  EXPECT_TRUE(two->register_range(start + kPageSize * 2, kPageSize, UffdMode::missing));
  EXPECT_EQ(two->unregister_range(start, kPageSize).error().sys_errno(), EINVAL);
}

TEST_F(Monitor, TheEngineMustHaveBeenMadeForIt) {
  auto plain = Engine::create();
  ASSERT_TRUE(plain);
  const auto refused = Userfault::open(*plain, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::unsupported);
  EXPECT_NE(refused.error().message().find("EngineOptions::monitors"), std::string::npos);
}

TEST(MonitorFeatures, WhatHoldsForAllMemoryIsOfAllMonitorsOrOfNone) {
  const auto expect_unsupported = [](const auto& refused, std::string_view remedy) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::unsupported);
    EXPECT_NE(refused.error().message().find(remedy), std::string::npos) << refused.error().message();
  };
  expect_unsupported(Engine::create({.monitors = UffdFeature::sigbus}), "HandlerPolicy::in_thread");
  expect_unsupported(Engine::create({.handlers = HandlerPolicy::in_thread, .monitors = kFeatures}),
                     "UffdFeature::sigbus");
  auto engine = Engine::create({.monitors = UffdFeature::wp_async});
  if (!engine) GTEST_SKIP() << engine.error().message();
  expect_unsupported(Userfault::open(*engine, {}), "make another engine");
  EXPECT_TRUE(Userfault::open(*engine, UffdFeature::wp_async));
}

TEST(MonitorFeatures, WrittenPagesComeInPartsWhereThereIsLittleRoom) {
  auto engine = Engine::create({.monitors = UffdFeature::wp_async});
  if (!engine) GTEST_SKIP() << engine.error().message();
  auto memory = engine->map("zero:1M", {.access = Access::shared});
  auto monitor = Userfault::open(*engine, UffdFeature::wp_async);
  ASSERT_TRUE(memory && monitor);
  const Address start{reinterpret_cast<std::uintptr_t>(memory->bytes().data())};
  std::array<WrittenRange, 3> found{};
  EXPECT_EQ(monitor->written(start, 1_MiB, found, Rearm::no).error().sys_errno(), EPERM);
  ASSERT_TRUE(monitor->register_range(start, 1_MiB, UffdMode::wp));
  EXPECT_EQ(monitor->written(start, 1_MiB, {}, Rearm::no).error().sys_errno(), EINVAL);
  ASSERT_EQ(monitor->writeprotect(start, 1_MiB, ResolveFlag::wp).error, 0);
  for (std::uint64_t page = 0; page < 256; page += 2) memory->writable_bytes()[page * kPageSize.value] = std::byte{1};
  std::uint64_t pages = 0;
  for (Address at = start; at < start + 1_MiB;) {
    const auto part = monitor->written(at, start + 1_MiB - at, found, Rearm::yes);
    ASSERT_TRUE(part && part->end > at);
    for (const WrittenRange& range : std::span(found).first(part->ranges)) {
      EXPECT_EQ(range.start, start + kPageSize * (2 * pages));
      EXPECT_EQ(range.length, kPageSize);
      ++pages;
    }
    at = part->end;
  }
  EXPECT_EQ(pages, 128U);
  // All of them at once: neighbours are one range, wherever the kernel ended its answers.
  for (std::uint64_t page = 0; page < 256; ++page) memory->writable_bytes()[page * kPageSize.value] = std::byte{2};
  const auto all = monitor->written(start, 1_MiB, found, Rearm::yes);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->ranges, 1U);
  EXPECT_EQ(found[0].length, 1_MiB);
  EXPECT_EQ(monitor->written(start, 1_MiB, found, Rearm::no)->ranges, 0U);
}

TEST_F(Monitor, ACopyFromServedMemoryFetchesIt) {
  auto memory = engine_->map("zero:64K", {.access = Access::shared});
  auto source = engine_->map(test::pattern_source(64_KiB));
  auto monitor = Userfault::open(*engine_, {});
  ASSERT_TRUE(memory && source && monitor);
  ASSERT_TRUE(monitor->register_range(address(*memory, 0), 64_KiB, UffdMode::missing));
  const UffdOutcome copied = monitor->copy(address(*memory, 0), source->bytes().data(), 64_KiB, {});
  EXPECT_EQ(copied.error, 0);
  EXPECT_EQ(copied.done, 64 * 1024);
  EXPECT_EQ(test::Pattern::mismatch(memory->bytes(), 0), std::nullopt);
}

TEST(MonitorUnderPressure, WhatAMonitorPutThereIsNotEvicted) {
  auto engine = Engine::create({.budget = 4_MiB, .monitors = kFeatures});
  if (!engine) GTEST_SKIP() << engine.error().message();
  auto memory = engine->map("zero:2M");
  auto other = engine->map(test::pattern_source(16_MiB));
  auto monitor = Userfault::open(*engine, {});
  ASSERT_TRUE(memory && other && monitor);
  std::vector<std::byte> bytes(2 << 20);
  test::Pattern::fill(bytes, 0);
  const Address start{reinterpret_cast<std::uintptr_t>(memory->bytes().data())};
  ASSERT_TRUE(monitor->register_range(start, 2_MiB, UffdMode::missing));
  ASSERT_EQ(monitor->copy(start, bytes.data(), 2_MiB, {}).error, 0);
  ASSERT_TRUE(monitor->unregister_range(start, 2_MiB));
  EXPECT_EQ(test::Pattern::mismatch(other->bytes(), 0), std::nullopt);
  EXPECT_GT(engine->report().folios_evicted, 0U);
  EXPECT_EQ(test::Pattern::mismatch(memory->bytes(), 0), std::nullopt) << "zeroes of the source";
}

}  // namespace
}  // namespace uffda::conformance
