// `uffda criu page-server`: the memory of a dump for a stock `criu lazy-pages --page-server` on another host; or the
// place to which a stock `criu dump --page-server` sends its pages.
#pragma once

#include <cstdint>
#include <string>

#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda {

struct CriuPageServerOptions {
  std::string images;  ///< the directory of the dump's images; of a dump to be received, where its pages go
  std::string pages;   ///< the source of the memory; empty: the images
  std::string address = "127.0.0.1";
  std::uint16_t port = 0;                        ///< 0: any that is free, which is printed
  bool wide = false;                             ///< records of 32 bytes (CRIU 4.2 and newer)
  bool receive = false;                          ///< stores what a dump sends
  int ready_fd = -1;                             ///< gets "ready\n" and is closed when CRIU can connect
  Duration deadline = std::chrono::seconds(30);  ///< a source that takes longer has failed
};

/// Serves one connection, as CRIU's own does, and ends with it: 0 if the other side said that it is done. SIGTERM and
/// SIGINT end it. Errors: those of the images and the source, of listening; protocol, gone.
Result<int> run_criu_page_server(const CriuPageServerOptions& options);

}  // namespace uffda
