// Asks a stock `criu dump --lazy-pages` for pages.
#pragma once

#include <memory>
#include <string>

#include "criu/dump_source.h"
#include "uffda/result.h"

namespace uffda::criu {

/// `address`: //HOST:PORT. `wide`: the server is CRIU 4.2 or newer. The server has one client, and ends with the
/// connection: there is no second try. Errors: invalid_argument, gone (nobody listens there).
Result<std::unique_ptr<RemotePages>> connect_page_server(const std::string& address, bool wide);

}  // namespace uffda::criu
