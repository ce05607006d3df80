// The header of an http response, one line at a time. Foreign text.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

namespace uffda::sources::http {

/// What a server may send as header lines to one request, redirects and interim answers included.
inline constexpr std::size_t kMaxHeaderBytes = std::size_t{128} << 10U;

class Headers {
 public:
  /// Takes the next line; a status line begins a new response and drops what was there; lines after the end of a header
  /// (trailers) are passed over. False: this server sends headers without end.
  [[nodiscard]] bool take(std::string_view line);
  void clear() { *this = {}; }

  /// Of the status line; 0 as long as there was none.
  [[nodiscard]] int status() const { return status_; }
  /// The value of a header, by its name in lower case; empty if there is none. One that came several times is joined by
  /// commas.
  [[nodiscard]] std::string_view find(std::string_view name) const;

 private:
  std::map<std::string, std::string, std::less<>> values_;
  std::size_t bytes_ = 0;
  int status_ = 0;
  bool ended_ = true;
};

}  // namespace uffda::sources::http
