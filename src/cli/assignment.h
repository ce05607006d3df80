// What --map, --export and the like are given: a name, and what it is to show.
#pragma once

#include <string>
#include <string_view>

#include "exec/resolved_map.h"
#include "uffda/result.h"

namespace uffda::cli {

/// NAME=URI or PATH=URI; with a running server PATH=NAME.
struct Assignment {
  std::string name;
  std::string source;
  MapMode mode = MapMode::read_only;
};

/// Whether that is a URI of a source that there is. Nothing is opened. Errors: invalid_argument, with what there is.
Result<void> check_source(const std::string& uri);

/// NAME=VALUE, neither of them empty. `option` and `right` are for the message: which option, and how it is written.
/// Errors: invalid_argument.
Result<Assignment> split_assignment(std::string_view option, const std::string& text, std::string_view right);
/// The same, perhaps with a mode behind it. A URI has to have a scheme that there is; a server's export is checked by
/// that server. Nothing is opened. Errors: invalid_argument.
Result<Assignment> parse_assignment(std::string_view option, const std::string& text, std::string_view right,
                                    bool is_uri);

}  // namespace uffda::cli
