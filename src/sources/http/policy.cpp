#include "sources/http/policy.h"

#include <algorithm>

#include "sources/layer.h"

namespace uffda::sources::http {

std::size_t joined(std::span<const ByteRange> sorted) {
  std::size_t count = 1;
  const ByteOffset start = sorted.front().start;
  while (count < sorted.size() && sorted[count].start == sorted[count - 1].end() &&
         sorted[count].end() - start <= kMaxRequest)
    ++count;
  return count;
}

Again ask_again(int status) {
  switch (status) {
    case 401:
    case 403:
      return Again::with_keys;
    case 408:  // request time-out
    case 425:  // too early
    case 429:  // too many requests
      return Again::later;
    case 501:  // the server does not know the method
    case 505:  // HTTP version not supported
      return Again::no;
    default:
      return status >= 500 && status < 600 ? Again::later : Again::no;
  }
}

Duration backoff(unsigned attempt, std::uint64_t random) {
  constexpr unsigned kMaxDoublings = 10;
  const Duration doubled = kFirstBackoff * (1U << std::min(attempt - 1, kMaxDoublings));
  const Duration whole = std::min(doubled, kMaxBackoff);
  return whole - std::chrono::duration_cast<Duration>(whole * (mixed_fraction(random) / 2));
}

}  // namespace uffda::sources::http
