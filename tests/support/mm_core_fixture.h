// A core with one object and one address space over a userfaultfd that is no kernel's.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "memtypes/builtin.h"
#include "mm/address_space.h"
#include "mm/core.h"
#include "mm/memory_object.h"
#include "support/mm_fake_userfault.h"
#include "support/mm_tickets.h"

namespace uffda::test {

inline constexpr Address kBase{0x7000'0000'0000};
inline Address page(std::uint64_t index) { return kBase + kPageSize * index; }

enum class Exact : std::uint8_t { no, yes };

class CoreTest : public testing::Test {
 protected:
  void make_core(const CoreOptions& options) {
    auto core = Core::create(options);
    ASSERT_TRUE(core) << core.error().message();
    core_ = *core;
    ASSERT_TRUE(register_builtin_types(core_->types()));
    core_->on_source_failure([this](const SourceFailure&) { ++failures_; });
    fake_.emplace(core_);
  }
  /// Contents by tickets; mapped at kBase.
  void make_object(ByteCount size, std::optional<ByteCount> mapped = {}) {
    make_object_of(ticket_source(tickets_, size), mapped.value_or(ByteCount{align_up(size.value, kPageSize.value)}));
  }
  void make_object_of(std::unique_ptr<PageSource> source, ByteCount mapped, std::string_view type = "shmem") {
    if (!core_) make_core({});
    auto object = core_->create_object(std::move(source), type);
    ASSERT_TRUE(object) << object.error().message();
    object_ = *object;
    ASSERT_TRUE(space().attach(kBase, mapped, object_, {}));
  }
  void TearDown() override {
    for (std::thread& thread : late_threads_) thread.join();
    if (fake_ && fake_->space) fake_->space->close();
    object_.reset();
    fake_.reset();
    core_.reset();
  }

  FakeUserfault& fake() { return *fake_->userfault; }
  AddressSpace& space() { return *fake_->space; }
  void fault(std::uint64_t index) { space().handle_fault(page(index)); }
  void fault(ByteOffset at, Exact) { space().handle_fault(kBase + (at - ByteOffset{})); }
  std::size_t failures() const { return failures_; }
  /// The page cache holds the pattern there.
  void expect_bytes(FolioIndex index) {
    const ByteRange range = object_->bytes_of({.first = index, .count = 1});
    std::vector<std::byte> bytes(range.length.value);
    ASSERT_TRUE(object_->read(range.start, bytes, Deadline::after(kPatience)));
    EXPECT_EQ(Pattern::mismatch(bytes, range.start.value), std::nullopt) << "folio " << index;
  }
  PageState state(FolioIndex index) { return object_->states().get(index); }

  std::shared_ptr<Core> core_;
  std::shared_ptr<Tickets> tickets_ = std::make_shared<Tickets>();
  std::shared_ptr<MemoryObject> object_;
  std::optional<FakeSpace> fake_;
  std::vector<std::thread> late_threads_;
  std::atomic<std::size_t> failures_{0};
};

}  // namespace uffda::test
