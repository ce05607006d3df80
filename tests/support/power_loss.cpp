#include "support/power_loss.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <span>

#include "sources/layer.h"

namespace uffda::test {
namespace {

class PoweredSource final : public sources::Layer, public WriteOwner {
 public:
  PoweredSource(std::unique_ptr<PageSource> source, std::shared_ptr<Power> power)
      : Layer(std::move(source)), power_(std::move(power)) {
    opened("powered+" + inner().name(), inner().properties());
  }
  ~PoweredSource() override { close_inner(); }

 private:
  struct UnderWay {
    WriteTicket ticket;
    std::uint64_t number;
  };
  void do_fetch(FetchTicket ticket) noexcept override { inner().fetch(std::move(ticket)); }
  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    return inner().fetch_now(offset, buffer);
  }
  void do_write_back(WriteTicket ticket) noexcept override {
    const std::uint64_t number = power_->start_write(ticket.range().start, ticket.bytes());
    if (number == 0) return std::move(ticket).complete();
    const ByteOffset offset = ticket.range().start;
    const std::span<const std::byte> bytes = ticket.bytes();
    const Deadline deadline = ticket.deadline();
    auto* const request = new UnderWay{.ticket = std::move(ticket), .number = number};
    inner().write_back(WriteTicket(*this, request, offset, bytes, deadline));
  }
  void written_back(void* request, Result<void> result) noexcept override {
    const std::unique_ptr<UnderWay> write(static_cast<UnderWay*>(request));
    power_->end_write(write->number, result.has_value());
    if (result) {
      std::move(write->ticket).complete();
    } else {
      std::move(write->ticket).fail(result.error());
    }
  }
  Result<void> do_flush() override {
    const std::vector<std::uint64_t> writes = power_->start_flush();
    return power_->end_flush(writes, inner().flush());
  }

  std::shared_ptr<Power> power_;
};

}  // namespace

std::unique_ptr<PageSource> powered(std::unique_ptr<PageSource> inner, std::shared_ptr<Power> power) {
  return std::make_unique<PoweredSource>(std::move(inner), std::move(power));
}

Power::Power(std::vector<std::byte> stored, std::uint64_t lost_at, std::uint64_t seed)
    : lost_at_(lost_at), random_(seed), safe_(std::move(stored)) {}

/// Whether there still is power.
bool Power::step_locked() {
  if (++steps_ == lost_at_) lost_.store(true, std::memory_order_release);
  return !lost();
}

void Power::end_quietly() {
  const MutexLock lock(mutex_);
  ends_quietly_ = true;
}

std::uint64_t Power::start_write(ByteOffset offset, std::span<const std::byte> bytes) {
  const MutexLock lock(mutex_);
  if (lost()) return 0;
  const std::uint64_t number = ++writes_;
  unsafe_.push_back({.number = number, .offset = offset.value, .bytes = {bytes.begin(), bytes.end()}});
  step_locked();
  return number;
}

void Power::end_write(std::uint64_t number, bool stored) {
  const MutexLock lock(mutex_);
  step_locked();
  for (Write& write : unsafe_) {
    if (write.number == number) write.ended = stored;
  }
}

std::vector<std::uint64_t> Power::start_flush() {
  const MutexLock lock(mutex_);
  step_locked();
  std::vector<std::uint64_t> ended;
  for (const Write& write : unsafe_) {
    if (write.ended) ended.push_back(write.number);
  }
  return ended;
}

Result<void> Power::end_flush(const std::vector<std::uint64_t>& writes, const Result<void>& flushed) {
  const MutexLock lock(mutex_);
  if (!step_locked()) return ends_quietly_ ? Result<void>() : uffda::fail(Errc::io, "the power is gone");
  if (!flushed) return flushed;
  std::erase_if(unsafe_, [&](const Write& write) UFFDA_REQUIRES(mutex_) {
    if (!std::ranges::binary_search(writes, write.number)) return false;
    std::ranges::copy(write.bytes, safe_.begin() + static_cast<std::ptrdiff_t>(write.offset));
    return true;
  });
  return {};
}

bool Power::survives(Leaves leaves, bool whole_write) {
  switch (leaves) {
    case Leaves::nothing:
      return false;
    case Leaves::some_writes:
      return whole_write;
    case Leaves::some_sectors:
      return random_() % 2 == 0;
    case Leaves::everything:
      break;
  }
  return true;
}

std::uint64_t Power::settle(const std::string& path) {
  const MutexLock lock(mutex_);
  const auto leaves = static_cast<Leaves>(random_() % 4);
  std::map<std::uint64_t, std::span<const std::byte>> left;
  for (const Write& write : unsafe_) {
    const bool whole = random_() % 2 == 0;
    for (std::uint64_t at = 0; at < write.bytes.size(); at += kSector) {
      const std::uint64_t length = std::min<std::uint64_t>(kSector, write.bytes.size() - at);
      std::span<const std::byte>& sector = left[write.offset + at];
      if (sector.empty()) sector = std::span(safe_).subspan(write.offset + at, length);
      if (survives(leaves, whole)) sector = std::span(write.bytes).subspan(at, length);
    }
  }
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  EXPECT_GE(fd, 0) << path;
  std::uint64_t changed = 0;
  for (const auto& [offset, bytes] : left) {
    std::vector<std::byte> before(bytes.size());
    EXPECT_EQ(::pread(fd, before.data(), before.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(before.size()));
    if (std::ranges::equal(before, bytes)) continue;
    EXPECT_EQ(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)), static_cast<ssize_t>(bytes.size()));
    ++changed;
  }
  ::close(fd);
  return changed;
}

}  // namespace uffda::test
