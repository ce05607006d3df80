// What http servers and object stores write, taken apart. Foreign text: every byte is checked, nothing is trusted. Pure
// functions without libcurl, so that unit tests and a fuzzer reach them.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::sources::http {

/// Content-Range of a 206: which bytes follow, of how many.
struct ContentRange {
  ByteRange range;  ///< not empty, within `total`
  ByteCount total;
  bool operator==(const ContentRange&) const = default;
};

/// "bytes FIRST-LAST/TOTAL". Errors: protocol (also for an unknown total, "*").
Result<ContentRange> parse_content_range(std::string_view text);

/// Content-Range of a 416, "bytes */TOTAL". Empty: it is something else.
std::optional<ByteCount> parse_unsatisfied_range(std::string_view text);

/// An entity tag that stands for exactly these bytes: quoted, printable, not W/"...".
bool is_strong_etag(std::string_view text);

/// Without blanks, tabs and line ends at its ends.
std::string_view trimmed(std::string_view text);

/// `text` for a message: what cannot be printed becomes '?', and after `most` bytes it is cut.
std::string printable(std::string_view text, std::size_t most = 200);

/// The Code and Message of an object store's error document, "NoSuchKey: The key does not exist". Empty: there is none.
std::string store_error(std::string_view body);

/// The text of the element `key` in such a document, printable; empty if it is not there.
std::string xml_value(std::string_view body, std::string_view key);

/// A URL without what it must not contain: blanks, control and non-ASCII bytes, '#', and '%' that begins no escape are
/// written %XX.
std::string encoded_url(std::string_view text);

/// The name of an object as a path: everything but unreserved characters and '/' is written %XX (as S3 signs it).
std::string encoded_key(std::string_view key);

}  // namespace uffda::sources::http
