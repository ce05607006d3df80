// Where an NBD export is and how to get there, from the URI (doc/uri.md of the NBD project):
//
//   nbd://HOST[:PORT]/EXPORT      nbd+unix:///EXPORT?socket=PATH       nbds: the same with TLS
//   nbds://USER@HOST/EXPORT       the user of a pre-shared key
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "uffda/source_registry.h"

namespace uffda::sources {

struct NbdAddress {
  std::string host;  ///< empty: a UNIX socket
  std::string port;
  std::string socket;  ///< path of the UNIX socket
  std::string export_name;

  bool tls = false;
  bool verify = true;        ///< the server's certificate
  std::string certificates;  ///< directory
  std::string psk_file;      ///< pre-shared keys; empty: certificates
  std::string user;

  std::optional<unsigned> connections;  ///< as many, or fewer if the server says so; none: as many as are good
  bool zero_runs = true;                ///< ask which ranges are zeroes
  std::chrono::nanoseconds connect_timeout{};

  std::string name;  ///< for messages: without the user

  /// Errors: invalid_argument, with what is wrong and what would be right; unsupported (TLS to a UNIX socket cannot be
  /// verified).
  static Result<NbdAddress> from(const SourceUri& uri);
};

}  // namespace uffda::sources
