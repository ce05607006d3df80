// One request for a range of an object, and the checks of its answer. A 206 with exactly the range that was asked for,
// of the version that was opened, is the only answer whose bytes are used.
#pragma once

#include <curl/curl.h>

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "plugins/http/target.h"
#include "sources/http/headers.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::sources::http {

/// What tells one version of an object from another. At most one of the first two is set.
struct Pin {
  std::string etag;      ///< strong: If-Match
  std::string weak;      ///< a weak one, compared in every answer beside the date
  std::string modified;  ///< Last-Modified: If-Unmodified-Since, where there is no strong etag
  bool operator==(const Pin&) const = default;
  [[nodiscard]] bool empty() const { return etag.empty() && modified.empty(); }
};
Pin pin_of(const Headers& headers);

/// How a request ended that did not succeed.
struct Failure {
  enum class Next : std::uint8_t {
    give_up,   ///< the same request would end like this again
    retry,     ///< a passing state of the server or the network
    with_keys  ///< only if the credentials have changed meanwhile
  };
  Error error;
  Next next = Next::give_up;
  Duration wait{};        ///< what the server asks to wait (Retry-After)
  bool connected = true;  ///< false: it did not come to an answer of the server
};

class Exchange {
 public:
  explicit Exchange(const Target& target);
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  virtual ~Exchange() = default;

  [[nodiscard]] CURL* handle() const { return handle_.get(); }
  [[nodiscard]] ByteRange range() const { return range_; }
  /// When anything was heard last.
  [[nodiscard]] TimePoint heard() const { return heard_; }
  /// Empty: it succeeded. Called once, when libcurl has ended the request with `code`.
  std::optional<Failure> finish(CURLcode code);

 protected:
  struct Options {
    ByteRange range;
    const Pin* pin = nullptr;  ///< null: not known yet
    const Credentials* keys = nullptr;
    Duration connect_timeout{};
    bool fresh = false;  ///< not over a connection that is there already
  };
  void prepare(const Options& options);
  [[nodiscard]] const Target& target() const { return target_; }
  [[nodiscard]] const Headers& headers() const { return headers_; }
  [[nodiscard]] int status() const { return headers_.status(); }

 private:
  /// The header of a 200 or 206 is there. Errors: why its bytes are not wanted.
  virtual Result<void> do_accept() = 0;
  /// The next bytes of the body. Errors: there are too many.
  virtual Result<void> do_take(std::span<const std::byte> bytes) = 0;
  /// The body has ended. Errors: io (it is short: tried again).
  virtual Result<void> do_end() = 0;

  static std::size_t on_header(const char* data, std::size_t size, std::size_t count, void* self);
  static std::size_t on_body(const char* data, std::size_t size, std::size_t count, void* self);
  bool accept_once();
  bool take(std::span<const std::byte> bytes);
  bool refuse(Error error, Failure::Next next = Failure::Next::give_up);
  void set_fixed_options();
  void set_headers(const Options& options);
  [[nodiscard]] Failure status_failure() const;
  [[nodiscard]] Failure transport_failure(CURLcode code) const;

  struct FreeHandle {
    void operator()(CURL* handle) const { ::curl_easy_cleanup(handle); }
  };
  struct FreeList {
    void operator()(curl_slist* list) const { ::curl_slist_free_all(list); }
  };

  const Target& target_;
  std::unique_ptr<curl_slist, FreeList> lines_;  // before the handle, which points to them
  std::array<char, CURL_ERROR_SIZE> words_{};
  std::unique_ptr<CURL, FreeHandle> handle_;
  ByteRange range_;
  Headers headers_;
  std::string error_body_;
  std::optional<Failure> failure_;
  bool accepted_ = false;
  bool opening_ = false;  // what the object is, is not known yet
  TimePoint heard_;
};

}  // namespace uffda::sources::http
