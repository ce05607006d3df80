// Help texts: one look for all commands.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

namespace uffda::cli {

/// What a command's help shows beside its options.
struct HelpSpec {
  std::string usage;
  std::string example;
  bool sources = false;  ///< list the URI schemes and layers that are registered
};

/// Makes CLI11 print `spec` for `app`.
void set_help(CLI::App& app, HelpSpec spec);

/// The URI schemes and layers that are registered, with their parameters.
std::string sources_help();

}  // namespace uffda::cli
