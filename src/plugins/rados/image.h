// What is known of the image that is open: its header, of which a writer sets bits while others read.
#pragma once

#include <atomic>
#include <vector>

#include "sources/rados_header.h"

namespace uffda::sources::rados {

/// Threads: any.
class Image {
 public:
  explicit Image(Header header) : header_(std::move(header)), stored_(header_.stored.size()) {
    for (std::size_t i = 0; i < stored_.size(); ++i) stored_[i] = header_.stored[i];
  }

  /// As it was when the image was opened: its `stored` is not kept up to date.
  [[nodiscard]] const Header& header() const { return header_; }
  [[nodiscard]] bool is_stored(std::uint64_t piece) const { return (stored_[piece / 8] >> (piece % 8) & 1U) != 0; }
  /// Its object is there, and the header in the cluster says so.
  void set_stored(std::uint64_t piece) { stored_[piece / 8] |= static_cast<std::uint8_t>(1U << (piece % 8)); }
  /// The header with the bits of now.
  [[nodiscard]] Header snapshot() const {
    Header header = header_;
    for (std::size_t i = 0; i < stored_.size(); ++i) header.stored[i] = stored_[i];
    return header;
  }

 private:
  const Header header_;
  std::vector<std::atomic<std::uint8_t>> stored_;
};

}  // namespace uffda::sources::rados
