// The files ~/.aws/credentials and ~/.aws/config: sections with `key = value` lines.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "uffda/result.h"

namespace uffda::sources::http {

using IniSection = std::map<std::string, std::string, std::less<>>;

/// The keys, in lower case, of [name]; of several sections of one name the later wins. Indented lines (nested settings)
/// and lines that begin with '#' or ';' are passed over. Empty: there is no such section.
/// Errors: invalid_argument (a line that is none of these; says which, and not what is in it: it may be a secret).
Result<IniSection> read_ini_section(std::string_view text, std::string_view name);

}  // namespace uffda::sources::http
