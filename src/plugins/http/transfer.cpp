#include "plugins/http/transfer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "sources/http/values.h"

namespace uffda::sources::http {

void Wanted::complete() && noexcept {
  in_flight_->fetch_sub(1);
  std::move(ticket_).complete(ticket_.range().length);
}

void Wanted::fail(Error error) && noexcept {
  in_flight_->fetch_sub(1);
  std::move(ticket_).fail(std::move(error));
}

void Transfer::start(std::vector<Wanted> parts, const Object& object, const Credentials& keys) {
  object_ = &object;
  parts_.clear();
  ranges_.clear();
  current_ = 0;
  received_ = {};
  const TimePoint now = Clock::now();
  bool fresh = false;
  TimePoint first = TimePoint::max();
  for (Wanted& part : parts) {
    fresh = fresh || part.fresh;
    first = std::min(first, part.deadline().when());
    ranges_.push_back(part.range());
    parts_.emplace_back(std::move(part));
  }
  // A connection that cannot be made leaves time for another attempt.
  constexpr Duration kShortest = std::chrono::milliseconds(20);
  const Duration patience = std::max(kShortest, std::min(target().connect_timeout, (first - now) / 2));
  const ByteOffset begin = ranges_.front().start;
  prepare({.range = {begin, ranges_.back().end() - begin},
           .pin = &object.pin,
           .keys = &keys,
           .connect_timeout = patience,
           .fresh = fresh});
}

std::vector<Wanted> Transfer::take_back() {
  std::vector<Wanted> left;
  for (std::optional<Wanted>& part : parts_) {
    if (part) left.push_back(*std::move(part));
  }
  parts_.clear();
  return left;
}

bool Transfer::expire(TimePoint now, const std::string& name) {
  bool left = false;
  for (std::optional<Wanted>& part : parts_) {
    if (!part) continue;
    if (part->deadline().when() > now) {
      left = true;
      continue;
    }
    Wanted late = *std::exchange(part, std::nullopt);
    const std::string last = late.last.empty() ? "" : "; before that: " + late.last;
    std::move(late).fail(Error(Errc::timed_out, fmt::format("{}: no answer in time{}", name, last)));
  }
  return left;
}

TimePoint Transfer::first_deadline() const {
  TimePoint first = TimePoint::max();
  for (const std::optional<Wanted>& part : parts_) {
    if (part) first = std::min(first, part->deadline().when());
  }
  return first;
}

bool Transfer::same_version() const {
  const Pin now = pin_of(headers());
  const Pin& then = object_->pin;
  // A strong tag says it all: a store's date may be of the copy that answers.
  return then.etag.empty() ? now == then : now.etag == then.etag;
}

Result<void> Transfer::do_accept() {
  if (status() == 200 && range() != ByteRange{{0}, object_->size})
    return fail(Errc::protocol, "the server sends the whole object when it is asked for a range");
  if (!same_version()) return fail(Errc::io, "the object has changed since it was opened; open it again");
  if (status() == 206) {
    const ContentRange got = UFFDA_TRY(parse_content_range(headers().find("content-range")));
    if (got.total != object_->size)
      return fail(Errc::io, "the object has another size than when it was opened; open it again");
    if (got.range != range()) return fail(Errc::protocol, "the server sends another range than was asked for");
  }
  curl_off_t length = -1;
  ::curl_easy_getinfo(handle(), CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
  if (length >= 0 && static_cast<std::uint64_t>(length) != range().length.value)
    return fail(Errc::protocol, "the server announces another number of bytes than were asked for");
  return {};
}

Result<void> Transfer::do_take(std::span<const std::byte> bytes) {
  if (bytes.size() > (range().length - received_).value)
    return fail(Errc::protocol, "the server sends more bytes than were asked for");
  while (!bytes.empty()) {
    const ByteRange part = ranges_[current_];
    const std::uint64_t at = (range().start + received_ - part.start).value;
    const std::size_t count = std::min<std::uint64_t>(bytes.size(), part.length.value - at);
    std::optional<Wanted>& wanted = parts_[current_];
    if (wanted) std::memcpy(wanted->buffer().data() + at, bytes.data(), count);
    bytes = bytes.subspan(count);
    received_ += ByteCount{count};
    if (at + count < part.length.value) continue;
    ++current_;
    if (!wanted) continue;
    Wanted done = *std::exchange(wanted, std::nullopt);
    std::move(done).complete();
  }
  return {};
}

Result<void> Transfer::do_end() {
  if (received_ == range().length) return {};
  return fail(Errc::io, fmt::format("the server sent {} of {} bytes", received_.value, range().length.value));
}

}  // namespace uffda::sources::http
