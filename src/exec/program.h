// Whether a program will load what LD_PRELOAD names, as far as its file tells.
#pragma once

#include <optional>
#include <string>

namespace uffda::exec {

/// The file that keeps `program` (looked for as execvp(3) does) from loading the shim: the program itself, or for a
/// script its interpreter, if that is a static executable or one for another machine. Nothing: the dynamic loader
/// starts it, or it cannot be found or read, and then execvp says what is wrong with it.
std::optional<std::string> static_program(const std::string& program);

}  // namespace uffda::exec
