// Decisions of the http source: pure functions, tested without a server.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda::sources::http {

/// A request never asks for more: tickets that wait for later bytes of it would wait for all earlier ones.
inline constexpr ByteCount kMaxRequest = 1_MiB;
inline constexpr Duration kFirstBackoff = std::chrono::milliseconds(50);
inline constexpr Duration kMaxBackoff = std::chrono::seconds(2);

/// How many of `sorted` (by start) from its front on one request asks for: those that follow each other without a gap,
/// up to kMaxRequest; at least the first. Requires: not empty.
std::size_t joined(std::span<const ByteRange> sorted);

/// What a status of a server that was asked for a range says about asking once more.
enum class Again : std::uint8_t {
  no,         ///< the same request gets the same answer
  later,      ///< a passing state of the server
  with_keys,  ///< 401 and 403: credentials that have changed meanwhile would help
};
Again ask_again(int status);

/// How long to wait before attempt number `attempt` (the first retry is 1): doubling from kFirstBackoff to kMaxBackoff,
/// of which up to half is taken off at random, so that clients of a server that came back do not all call at once.
Duration backoff(unsigned attempt, std::uint64_t random);

}  // namespace uffda::sources::http
