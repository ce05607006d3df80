#include "plugins/http/target.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <cstdlib>
#include <memory>

#include "plugins/http/aws.h"
#include "sources/http/values.h"

namespace uffda::sources::http {
namespace {

constexpr unsigned kMaxConnections = 256;

struct FreeUrl {
  void operator()(CURLU* url) const { ::curl_url_cleanup(url); }
};
using Url = std::unique_ptr<CURLU, FreeUrl>;

std::string part(const Url& url, CURLUPart which, unsigned flags = 0) {
  char* text = nullptr;
  if (::curl_url_get(url.get(), which, &text, flags) != CURLUE_OK) return {};
  const std::unique_ptr<char, void (*)(void*)> owned(text, ::curl_free);
  return text;
}

/// The user's own words in messages: UTF-8 stays, control bytes do not.
std::string shown(std::string_view text) {
  std::string out(text);
  std::ranges::replace_if(out, [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; }, '?');
  return out;
}

/// Takes `text` apart; user and password are moved out of it.
Result<void> set_url(Target& target, const std::string& text) {
  const Url url(::curl_url());
  const CURLUcode parsed = ::curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0);
  if (parsed != CURLUE_OK) {
    // The text itself may hold a password.
    return fail(Errc::invalid_argument, fmt::format("{}: not a URL: {}", target.name, ::curl_url_strerror(parsed)));
  }
  target.user = part(url, CURLUPART_USER, CURLU_URLDECODE);
  target.password = part(url, CURLUPART_PASSWORD, CURLU_URLDECODE);
  ::curl_url_set(url.get(), CURLUPART_USER, nullptr, 0);
  ::curl_url_set(url.get(), CURLUPART_PASSWORD, nullptr, 0);
  target.url = part(url, CURLUPART_URL);
  if (target.kind == Target::Kind::store) return {};
  const bool query = !part(url, CURLUPART_QUERY).empty();
  ::curl_url_set(url.get(), CURLUPART_QUERY, nullptr, 0);
  target.name = part(url, CURLUPART_URL) + (query ? "?..." : "");
  return {};
}

Result<bool> is_on(const SourceUri& uri, std::string_view key) {
  const std::string value = UFFDA_TRY(uri.choice(key, {"off", "on"}, "off"));
  return value != "off";
}

Result<void> set_common(Target& target, const SourceUri& uri) {
  const std::uint64_t connections = UFFDA_TRY(uri.number("connections", target.connections));
  if (connections < 1 || connections > kMaxConnections)
    return fail(Errc::invalid_argument, fmt::format("connections={}: 1 to {}", connections, kMaxConnections));
  target.connections = static_cast<unsigned>(connections);
  target.connect_timeout = UFFDA_TRY(uri.duration("connect-timeout", target.connect_timeout));
  target.stall = UFFDA_TRY(uri.duration("stall", target.stall));
  constexpr Duration kShortest = std::chrono::milliseconds(10);
  if (target.connect_timeout < kShortest || target.stall < kShortest)
    return fail(Errc::invalid_argument, "connect-timeout and stall: at least 10ms");
  target.unpinned = UFFDA_TRY(is_on(uri, "unpinned"));
  // As the curl command does; the library by itself knows the system's only.
  target.cafile = environment("SSL_CERT_FILE");
  target.capath = environment("SSL_CERT_DIR");
  if (const std::string* const given = uri.find("cafile")) target.cafile = *given;
  return {};
}

/// Path style where somebody named the store, and for names that no certificate of Amazon's covers.
std::string store_url(const Target& target, std::string_view endpoint, std::string_view bucket, std::string_view key) {
  const std::string path = encoded_key(key);
  if (!endpoint.empty()) {
    while (endpoint.ends_with('/')) endpoint.remove_suffix(1);
    return fmt::format("{}/{}/{}", endpoint, bucket, path);
  }
  if (bucket.find('.') != std::string_view::npos)
    return fmt::format("https://s3.{}.amazonaws.com/{}/{}", target.region, bucket, path);
  return fmt::format("https://{}.s3.{}.amazonaws.com/{}", bucket, target.region, path);
}

Result<void> set_store(Target& target, const SourceUri& uri) {
  const std::string_view rest = std::string_view(uri.rest()).substr(2);
  const std::size_t slash = rest.find('/');
  const std::string_view bucket = rest.substr(0, slash);
  const std::string_view key = slash == std::string_view::npos ? std::string_view{} : rest.substr(slash + 1);
  target.name = fmt::format("s3://{}/{}", shown(bucket), shown(key));
  const bool plain = bucket == encoded_key(bucket);
  if (bucket.empty() || key.empty() || !plain)
    return fail(Errc::invalid_argument, target.name + ": expected s3://BUCKET/KEY");
  target.anonymous = UFFDA_TRY(is_on(uri, "anonymous"));
  const std::string* const profile = uri.find("profile");
  if (profile != nullptr) target.profile = *profile;
  const std::string* const region = uri.find("region");
  target.region = region != nullptr ? *region : UFFDA_TRY(aws_region(target.profile));
  if (target.region.empty() || target.region != encoded_key(target.region) ||
      target.region.find('/') != std::string::npos)
    return fail(Errc::invalid_argument, fmt::format("region={}: not a region's name", printable(target.region)));
  const std::string* const endpoint = uri.find("endpoint");
  const std::string store = endpoint != nullptr ? *endpoint : environment("AWS_ENDPOINT_URL");
  if (!store.empty() && !store.starts_with("http://") && !store.starts_with("https://"))
    return fail(Errc::invalid_argument, fmt::format("endpoint={}: a URL is needed, https://HOST", printable(store)));
  UFFDA_TRY_VOID(set_url(target, store_url(target, store, bucket, key)));
  if (!target.user.empty() || !target.password.empty())
    return fail(Errc::invalid_argument, "endpoint: keys are not written into it; use AWS_ACCESS_KEY_ID or a profile");
  return {};
}

}  // namespace

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

Result<Target> target_of(const SourceUri& uri) {
  Target target;
  target.kind = uri.scheme() == "s3" ? Target::Kind::store : Target::Kind::web;
  target.name = uri.scheme() + ":";
  if (!uri.rest().starts_with("//"))
    return fail(Errc::invalid_argument, fmt::format("{0}: expected {0}://", uri.scheme()));
  UFFDA_TRY_VOID(set_common(target, uri));
  if (target.kind == Target::Kind::store) {
    UFFDA_TRY_VOID(set_store(target, uri));
    return target;
  }
  UFFDA_TRY_VOID(set_url(target, uri.scheme() + ":" + encoded_url(uri.rest())));
  if (const std::string* const token = uri.find("token-file")) target.token_file = *token;
  return target;
}

Result<Credentials> load_credentials(const Target& target) {
  Credentials keys{.user = target.user, .password = target.password, .session = {}, .bearer = {}};
  if (target.kind == Target::Kind::web) {
    if (target.token_file.empty()) return keys;
    keys.bearer = UFFDA_TRY(read_small_file(target.token_file));
    while (!keys.bearer.empty() && static_cast<unsigned char>(keys.bearer.back()) <= ' ') keys.bearer.pop_back();
    if (keys.bearer.empty() || encoded_url(keys.bearer) != keys.bearer)
      return fail(Errc::invalid_argument, target.token_file + ": expected one line, a token");
    return keys;
  }
  if (target.anonymous) return keys;
  return aws_credentials(target.profile);
}

}  // namespace uffda::sources::http
