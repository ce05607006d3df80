// One request for the bytes of several tickets that follow each other. They are written where they belong as they come:
// straight into the tickets' buffers.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plugins/http/exchange.h"
#include "plugins/http/probe.h"
#include "uffda/page_source.h"

namespace uffda::sources::http {

/// A ticket on its way, and how it fared so far. Move-only.
class Wanted {
 public:
  Wanted(FetchTicket ticket, std::atomic<unsigned>& in_flight) : ticket_(std::move(ticket)), in_flight_(&in_flight) {}

  [[nodiscard]] ByteRange range() const { return ticket_.range(); }
  [[nodiscard]] std::span<std::byte> buffer() const { return ticket_.buffer(); }
  [[nodiscard]] Deadline deadline() const { return ticket_.deadline(); }
  void complete() && noexcept;
  void fail(Error error) && noexcept;

  unsigned attempts = 0;
  TimePoint not_before;
  bool fresh = false;  ///< the connection of the last attempt is not to be trusted
  std::string last;    ///< how the last attempt ended

 private:
  FetchTicket ticket_;
  std::atomic<unsigned>* in_flight_;
};

class Transfer final : public Exchange {
 public:
  explicit Transfer(const Target& target) : Exchange(target) {}

  /// Requires: not empty, sorted, each starts where the one before ends.
  void start(std::vector<Wanted> parts, const Object& object, const Credentials& keys);
  /// The tickets that have no answer yet. They are no longer this transfer's.
  std::vector<Wanted> take_back();
  /// Fails the tickets whose deadline has passed. False: none is left.
  bool expire(TimePoint now, const std::string& name);
  /// The first deadline of those that are left. Requires: expire() was true.
  [[nodiscard]] TimePoint first_deadline() const;

 private:
  Result<void> do_accept() override;
  Result<void> do_take(std::span<const std::byte> bytes) override;
  Result<void> do_end() override;
  [[nodiscard]] bool same_version() const;

  const Object* object_ = nullptr;
  std::vector<std::optional<Wanted>> parts_;
  std::vector<ByteRange> ranges_;  ///< of the parts, answered or not
  std::size_t current_ = 0;        ///< the part that the next byte belongs to
  ByteCount received_;
};

}  // namespace uffda::sources::http
