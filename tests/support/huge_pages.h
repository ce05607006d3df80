// Huge pages for a test, given back afterwards.
#pragma once

#include <cstdint>
#include <string>

#include "os/fd.h"
#include "uffda/units.h"

namespace uffda::test {

/// While it lives the pool of one page size is larger by `count` free pages. Tests of several programs take turns.
class HugePages {
 public:
  HugePages() = default;
  HugePages(ByteCount page, std::uint64_t count);
  HugePages(HugePages&& other) noexcept;
  HugePages& operator=(HugePages&& other) noexcept;
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;
  ~HugePages();

  /// Why they could not be had; empty if they are there.
  [[nodiscard]] const std::string& refused() const { return refused_; }

 private:
  void give_back();

  os::UniqueFd turn_;
  std::string setting_;
  std::uint64_t before_ = 0;
  std::string refused_;
};

/// Pages of this size that nobody has and that nobody was promised.
std::uint64_t huge_pages_available(ByteCount page);

}  // namespace uffda::test
