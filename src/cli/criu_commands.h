// `uffda criu lazy-pages` and `uffda criu page-server`: what they take, and what they do.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "server/criu_page_server.h"
#include "server/lazy_pages.h"
#include "uffda/result.h"

namespace CLI {  // NOLINT(readability-identifier-naming): the name is that of the library CLI11
class App;
}

namespace uffda::cli {

struct CriuCommand {
  std::variant<LazyPagesOptions, CriuPageServerOptions> options;
};

/// Words and option values as they were written.
struct CriuTexts {
  std::vector<std::string> words;
  std::string images, work, pages, address = "127.0.0.1", port, records = "24";
  bool receive = false;
};

/// The options that the commands share with others are the caller's: --ready-fd, --deadline, --warn-after.
CLI::App& add_criu_commands(CLI::App& root, CriuTexts& texts);
/// Errors: invalid_argument: what to write instead.
Result<CriuCommand> criu_command(const CriuTexts& texts);

/// Returns the exit status, or why it failed.
Result<int> run_criu(const CriuCommand& command);

}  // namespace uffda::cli
