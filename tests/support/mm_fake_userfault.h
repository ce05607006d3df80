// A userfaultfd without a kernel: a page table of three states, whatever answers a test scripts, and a record of what
// was asked.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "mm/address_space.h"
#include "os/userfault.h"

namespace uffda::test {

/// How long a test waits for something that must happen; only a failing test waits that long.
inline constexpr Duration kPatience = std::chrono::seconds(30);

/// Threads: any.
class FakeUserfault final : public os::Userfault {
 public:
  enum class Kind : std::uint8_t { copy, zeropage, continue_run, poison, wake, unregister };
  struct Call {
    Kind kind;
    Address start;
    ByteCount length;
  };
  enum class Page : std::uint8_t { none, mapped, poisoned };

  /// Answers a resolution instead of the page table. Called without a lock; nullopt: as the page table says.
  using Script = std::function<std::optional<os::Progress>(const Call&)>;
  void script(Script script) { script_ = std::move(script); }
  /// Called without a lock before pages are mapped by CONTINUE.
  void on_continue(std::function<void(Address, ByteCount)> check) { on_continue_ = std::move(check); }
  /// Called without a lock, when somebody is woken.
  void on_wake(std::function<void()> hook) { on_wake_ = std::move(hook); }
  /// What the next read gets.
  void push(const uffd_msg& message);

  [[nodiscard]] Page page(Address address) const;
  /// What COPY put there.
  [[nodiscard]] std::vector<std::byte> copied(Address address) const;
  /// The pages are as if they had never been touched.
  void clear();
  [[nodiscard]] std::vector<Call> calls() const;
  /// How often a thread that waits at `address` has been woken, by WAKE or by a resolution.
  [[nodiscard]] std::size_t wakes(Address address) const;
  /// False if `condition`, which is looked at after every call, does not come true in time.
  [[nodiscard]] bool wait_until(const std::function<bool()>& condition) const;

  [[nodiscard]] int fd() const override { return -1; }
  [[nodiscard]] std::uint64_t features() const override { return 0; }
  Result<std::size_t> read(std::span<uffd_msg> messages, os::Wait wait) override;
  os::Progress copy(Address to, std::span<const std::byte> from, os::Wake wake, os::Protect protect) override;
  os::Progress zeropage(Address start, ByteCount length, os::Wake wake) override;
  os::Progress continue_run(Address start, ByteCount length, os::Wake wake, os::Protect protect) override;
  os::Progress move(Address, Address, ByteCount, os::Wake, os::SourceHoles) override { return {}; }
  int writeprotect(Address, ByteCount, os::Protect, os::Wake) override { return 0; }
  os::Progress poison(Address start, ByteCount length, os::Wake wake) override;
  int wake(Address start, ByteCount length) override;
  bool unmap(std::span<const iovec> ranges) override;
  [[nodiscard]] bool can_unmap() const override { return true; }
  Result<UffdIoctls> register_range(Address, ByteCount, UffdModes) override { return UffdIoctls{}; }
  Result<void> unregister_range(Address start, ByteCount length) override;
  [[nodiscard]] bool alive() override { return true; }

 private:
  struct Entry {
    Page page = Page::none;
    std::vector<std::byte> bytes;
  };
  os::Progress resolve(const Call& call, const std::function<bool(Entry&, std::uint64_t)>& step);

  Script script_;
  std::function<void(Address, ByteCount)> on_continue_;
  std::function<void()> on_wake_;
  mutable std::mutex mutex_;
  mutable std::condition_variable called_;
  std::map<std::uint64_t, Entry> pages_;
  std::vector<Call> calls_;
  std::vector<Call> woken_;
  std::deque<uffd_msg> messages_;
};

/// An address space over a FakeUserfault, which stays with it.
struct FakeSpace {
  explicit FakeSpace(const std::shared_ptr<Core>& core);
  FakeUserfault* userfault;
  std::shared_ptr<AddressSpace> space;
};

uffd_msg unmap_event(Address start, ByteCount length);
uffd_msg remap_event(Address from, Address to, ByteCount length);
uffd_msg remove_event(Address start, ByteCount length);
uffd_msg fault_event(Address address);

}  // namespace uffda::test
