#include "support/huge_pages.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>

#include "os/probe.h"

namespace uffda::test {
namespace {

constexpr const char* kTurn = "/tmp/uffda-test-huge-pages.lock";

std::optional<os::HugepagePool> pool_of(ByteCount page) {
  for (os::HugepagePool& pool : os::probe_hugepages()) {
    if (pool.page_size == page) return pool;
  }
  return std::nullopt;
}

bool set_total(const std::string& setting, std::uint64_t total) {
  std::ofstream file(setting);
  file << total << std::flush;
  return file.good();
}

}  // namespace

std::uint64_t huge_pages_available(ByteCount page) {
  const auto pool = pool_of(page);
  return pool ? pool->available() : 0;
}

HugePages::HugePages(ByteCount page, std::uint64_t count) {
  turn_.reset(::open(kTurn, O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (turn_) ::flock(turn_.get(), LOCK_EX);
  const auto pool = pool_of(page);
  if (!pool) {
    refused_ = fmt::format("this machine has no huge pages of {} bytes", page.value);
    return;
  }
  setting_ = pool->setting;
  before_ = pool->total;
  if (!set_total(setting_, before_ + count)) {
    refused_ = fmt::format("needs to write to {} (root)", setting_);
    setting_.clear();
    return;
  }
  const std::uint64_t total = pool_of(page)->total;
  if (total >= before_ + count) return;
  refused_ = fmt::format("the kernel could give {} of {} huge pages of {} bytes", total - before_, count, page.value);
  give_back();
}

void HugePages::give_back() {
  if (!setting_.empty()) set_total(setting_, before_);
  setting_.clear();
  turn_.reset();
}

HugePages::HugePages(HugePages&& other) noexcept
    : turn_(std::move(other.turn_)),
      setting_(std::exchange(other.setting_, {})),
      before_(other.before_),
      refused_(std::move(other.refused_)) {}

HugePages& HugePages::operator=(HugePages&& other) noexcept {
  std::swap(turn_, other.turn_);
  std::swap(setting_, other.setting_);
  std::swap(before_, other.before_);
  std::swap(refused_, other.refused_);
  return *this;
}

HugePages::~HugePages() { give_back(); }

}  // namespace uffda::test
