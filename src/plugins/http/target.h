// Where an object is and how to ask for it: from the URI and the environment.
#pragma once

#include <algorithm>
#include <string>

#include "uffda/deadline.h"
#include "uffda/source_registry.h"

namespace uffda::sources::http {

struct Target {
  enum class Kind : std::uint8_t { web, store };
  Kind kind = Kind::web;
  std::string url;       ///< as it is asked for: without user and password
  std::string name;      ///< for messages: also without the query, which may be a signature
  std::string user;      ///< from the URL
  std::string password;  ///< from the URL
  std::string token_file;
  std::string region;
  std::string profile;  ///< empty: the environment decides
  bool anonymous = false;
  std::string cafile;  ///< empty: the system's
  std::string capath;  ///< the same
  unsigned connections = 64;
  Duration connect_timeout = std::chrono::seconds(5);
  Duration stall = std::chrono::seconds(8);
  bool unpinned = false;

  /// Tickets in flight: more than requests, because some are joined.
  [[nodiscard]] unsigned parallel() const { return std::max(128U, connections); }
  [[nodiscard]] bool https() const { return url.starts_with("https:"); }
};

/// A variable of the environment; empty if it is not set.
std::string environment(const char* name);

/// Errors: invalid_argument.
Result<Target> target_of(const SourceUri& uri);

/// User and password, a bearer token, or the keys of a store.
struct Credentials {
  std::string user;      ///< a store's access key
  std::string password;  ///< a store's secret key
  std::string session;   ///< a store's session token
  std::string bearer;
  bool operator==(const Credentials&) const = default;
};

/// From the URL, the token file, the environment or ~/.aws/credentials, read anew at every call. ~/.netrc is libcurl's
/// business. Errors: permission_denied (a store needs keys, and there are none; says where they were looked for),
/// invalid_argument, and what reading says.
Result<Credentials> load_credentials(const Target& target);

}  // namespace uffda::sources::http
