#include "plugins/http/exchange.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <string_view>

#include "base/log.h"
#include "sources/http/policy.h"
#include "sources/http/values.h"

namespace uffda::sources::http {
namespace {

constexpr long kMaxRedirects = 5;
/// Of an answer that is an error, so much is read for its words.
constexpr std::size_t kMaxErrorBody = std::size_t{16} << 10U;
/// SHA-256 of nothing. libcurl 7.88 does not add the header that S3 insists on.
constexpr const char* kNoPayload =
    "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

template <typename Value>
void set(CURL* handle, CURLoption option, Value value) {
  const CURLcode code = ::curl_easy_setopt(handle, option, value);
  UFFDA_ASSERT(code == CURLE_OK || code == CURLE_OUT_OF_MEMORY);
}

/// Not inherited by programs that this process starts.
curl_socket_t open_socket(void*, curlsocktype, curl_sockaddr* address) {
  return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

bool transport_passes(CURLcode code) {
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_SSL_CONNECT_ERROR:
      return true;
    default:
      return false;
  }
}

}  // namespace

Pin pin_of(const Headers& headers) {
  const std::string etag(headers.find("etag"));
  const bool strong = is_strong_etag(etag);
  return {
      .etag = strong ? etag : "", .weak = strong ? "" : etag, .modified = std::string(headers.find("last-modified"))};
}

Exchange::Exchange(const Target& target) : target_(target), handle_(::curl_easy_init()) {
  UFFDA_ASSERT(handle_ != nullptr);
  set_fixed_options();
}

void Exchange::set_fixed_options() {
  CURL* const curl = handle_.get();
  set(curl, CURLOPT_URL, target_.url.c_str());
  set(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  set(curl, CURLOPT_REDIR_PROTOCOLS_STR, target_.https() ? "https" : "http,https");
  // A signature is for one host. What a store answers instead is told to the user.
  set(curl, CURLOPT_FOLLOWLOCATION, target_.kind == Target::Kind::web ? 1L : 0L);
  set(curl, CURLOPT_MAXREDIRS, kMaxRedirects);
  set(curl, CURLOPT_HTTP_VERSION, long{CURL_HTTP_VERSION_2TLS});
  set(curl, CURLOPT_PIPEWAIT, target_.https() ? 1L : 0L);
  set(curl, CURLOPT_NOSIGNAL, 1L);
  set(curl, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  set(curl, CURLOPT_TCP_KEEPALIVE, 1L);
  set(curl, CURLOPT_QUICK_EXIT, 1L);  // who gives a request up does not wait for a name server
  set(curl, CURLOPT_ERRORBUFFER, words_.data());
  set(curl, CURLOPT_USERAGENT, "uffda/" UFFDA_VERSION);
  if (!target_.cafile.empty()) set(curl, CURLOPT_CAINFO, target_.cafile.c_str());
  if (!target_.capath.empty()) set(curl, CURLOPT_CAPATH, target_.capath.c_str());
  set(curl, CURLOPT_OPENSOCKETFUNCTION, &open_socket);
  set(curl, CURLOPT_HEADERFUNCTION, &Exchange::on_header);
  set(curl, CURLOPT_HEADERDATA, static_cast<void*>(this));
  set(curl, CURLOPT_WRITEFUNCTION, &Exchange::on_body);
  set(curl, CURLOPT_WRITEDATA, static_cast<void*>(this));
  if (target_.kind == Target::Kind::store) {
    set(curl, CURLOPT_PATH_AS_IS, 1L);  // a key may have '..' in it
    if (!target_.anonymous) set(curl, CURLOPT_AWS_SIGV4, fmt::format("aws:amz:{}:s3", target_.region).c_str());
  } else {
    set(curl, CURLOPT_NETRC, long{CURL_NETRC_OPTIONAL});
  }
}

void Exchange::set_headers(const Options& options) {
  curl_slist* list = nullptr;
  const auto add = [&](const std::string& line) { list = ::curl_slist_append(list, line.c_str()); };
  add("Accept-Encoding: identity");
  if (options.pin != nullptr && !options.pin->etag.empty()) {
    add("If-Match: " + options.pin->etag);
  } else if (options.pin != nullptr && !options.pin->modified.empty()) {
    add("If-Unmodified-Since: " + options.pin->modified);
  }
  if (target_.kind == Target::Kind::store && !target_.anonymous) {
    add(kNoPayload);
    if (!options.keys->session.empty()) add("x-amz-security-token: " + options.keys->session);
  }
  set(handle_.get(), CURLOPT_HTTPHEADER, list);
  lines_.reset(list);
}

void Exchange::prepare(const Options& options) {
  CURL* const curl = handle_.get();
  range_ = options.range;
  headers_.clear();
  error_body_.clear();
  failure_.reset();
  opening_ = options.pin == nullptr;
  words_[0] = '\0';
  accepted_ = false;
  heard_ = Clock::now();
  set_headers(options);
  set(curl, CURLOPT_RANGE, fmt::format("{}-{}", range_.start.value, range_.end().value - 1).c_str());
  using std::chrono::milliseconds;
  set(curl, CURLOPT_CONNECTTIMEOUT_MS,
      static_cast<long>(std::chrono::ceil<milliseconds>(options.connect_timeout).count()));
  set(curl, CURLOPT_FRESH_CONNECT, options.fresh ? 1L : 0L);
  const Credentials& keys = *options.keys;
  if (!keys.user.empty()) {
    set(curl, CURLOPT_USERNAME, keys.user.c_str());
    set(curl, CURLOPT_PASSWORD, keys.password.c_str());
  }
  if (!keys.bearer.empty()) {
    set(curl, CURLOPT_HTTPAUTH, static_cast<long>(CURLAUTH_BEARER));
    set(curl, CURLOPT_XOAUTH2_BEARER, keys.bearer.c_str());
  }
}

std::size_t Exchange::on_header(const char* data, std::size_t size, std::size_t count, void* self) {
  auto& exchange = *static_cast<Exchange*>(self);
  exchange.heard_ = Clock::now();
  if (exchange.headers_.take({data, size * count})) return size * count;
  exchange.refuse(Error(Errc::protocol, "the server sends headers without end"));
  return 0;
}

std::size_t Exchange::on_body(const char* data, std::size_t size, std::size_t count, void* self) {
  auto& exchange = *static_cast<Exchange*>(self);
  exchange.heard_ = Clock::now();
  const std::span<const char> bytes(data, size * count);
  return exchange.take(std::as_bytes(bytes)) ? bytes.size() : 0;
}

bool Exchange::refuse(Error error, Failure::Next next) {
  failure_ = Failure{.error = std::move(error), .next = next};
  return false;
}

bool Exchange::accept_once() {
  if (accepted_) return true;
  const std::string_view encoding = headers_.find("content-encoding");
  if (!encoding.empty() && encoding != "identity") {
    return refuse(
        Error(Errc::unsupported, fmt::format("the server sends it in the encoding '{}', although the bytes as "
                                             "they are were asked for: store the object without an encoding",
                                             printable(encoding))));
  }
  Result<void> accepted = do_accept();
  if (!accepted) return refuse(std::move(accepted).error());
  return accepted_ = true;
}

bool Exchange::take(std::span<const std::byte> bytes) {
  const int code = status();
  if (code == 200 || code == 206) {
    if (!accept_once()) return false;
    Result<void> taken = do_take(bytes);
    return taken ? true : refuse(std::move(taken).error());
  }
  const auto* const text = reinterpret_cast<const char*>(bytes.data());
  error_body_.append(text, std::min(bytes.size(), kMaxErrorBody - error_body_.size()));
  return error_body_.size() < kMaxErrorBody;
}

std::optional<Failure> Exchange::finish(CURLcode code) {
  const int answer = status();
  const bool success = answer == 200 || answer == 206;
  if (failure_) return failure_;
  // An answer that is an error stands, however its body ended.
  if (answer >= 400 || (answer >= 300 && code == CURLE_OK)) return status_failure();
  if (code != CURLE_OK) return transport_failure(code);
  if (!success)
    return Failure{.error = Error(Errc::protocol, fmt::format("the server answered {} instead of bytes", answer))};
  if (!accept_once()) return failure_;
  Result<void> ended = do_end();
  if (!ended) return Failure{.error = std::move(ended).error(), .next = Failure::Next::retry};
  return std::nullopt;
}

Failure Exchange::status_failure() const {
  const int answer = status();
  const std::string words = store_error(error_body_);
  std::string text = fmt::format("the server answered {}{}{}", answer, words.empty() ? "" : ", ", words);
  const auto failure = [&](Errc code, std::string_view remedy) {
    return Failure{.error = Error(code, text.append(remedy))};
  };
  if (const std::string_view region = headers_.find("x-amz-bucket-region"); !region.empty() && region != target_.region)
    return failure(Errc::invalid_argument,
                   fmt::format(": the bucket is in another region, region={}", printable(region)));
  const Again again = ask_again(answer);
  if (again == Again::with_keys) {
    Failure refused =
        failure(Errc::permission_denied, target_.kind == Target::Kind::store ? ": these keys may not read it"
                                         : answer == 401 ? ": put user and password into ~/.netrc, or name a token-file"
                                                         : ": this user may not read it");
    refused.next = Failure::Next::with_keys;
    return refused;
  }
  if (again == Again::later) {
    curl_off_t seconds = 0;
    ::curl_easy_getinfo(handle_.get(), CURLINFO_RETRY_AFTER, &seconds);
    constexpr curl_off_t kLongest = curl_off_t{24} * 3600;
    Failure passing = failure(Errc::io, "");
    passing.next = Failure::Next::retry;
    passing.wait = std::chrono::seconds(std::clamp<curl_off_t>(seconds, 0, kLongest));
    return passing;
  }
  if (answer == 404 || answer == 410) return failure(Errc::not_found, ": there is no such object");
  if (answer == 412) return failure(Errc::io, ": the object has changed since it was opened; open it again");
  if (answer == 416) {
    const auto total = parse_unsatisfied_range(headers_.find("content-range"));
    // The opening asks for the first byte; stores say 416 without a total when there is none.
    if (opening_ || total == ByteCount{0})
      return failure(Errc::invalid_argument, ": it is empty; there is nothing to map");
    return failure(Errc::io, ": the range is not in the object; it has changed since it was opened");
  }
  if (answer < 400) return failure(Errc::io, ", a redirect that is not followed: name the place it leads to");
  return failure(Errc::io, "");
}

Failure Exchange::transport_failure(CURLcode code) const {
  const std::string words = printable(words_[0] != '\0' ? words_.data() : ::curl_easy_strerror(code));
  const auto failure = [&](Errc errc, const std::string& text) {
    return Failure{.error = Error(errc, text), .connected = false};
  };
  switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
      return failure(Errc::permission_denied,
                     words + ": the server's certificate is not trusted; cafile= names one that vouches for it");
    case CURLE_SSL_CACERT_BADFILE:
      return failure(Errc::invalid_argument, fmt::format("cafile {}: {}", target_.cafile, words));
    case CURLE_TOO_MANY_REDIRECTS:
      return failure(Errc::protocol, fmt::format("more than {} redirects", kMaxRedirects));
    case CURLE_UNSUPPORTED_PROTOCOL:
      return failure(Errc::protocol, words + (target_.https() ? " (https is never left for http)" : ""));
    case CURLE_OUT_OF_MEMORY:
      return failure(Errc::no_memory, words);
    default:
      break;
  }
  Failure other = failure(Errc::io, words);
  if (transport_passes(code)) other.next = Failure::Next::retry;
  return other;
}

}  // namespace uffda::sources::http
