#include "cli/help.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

using Row = std::pair<std::string, std::string>;

std::string rows_text(const std::vector<Row>& rows) {
  std::size_t width = 0;
  for (const auto& [left, right] : rows) width = std::max(width, left.size());
  std::string text;
  for (const auto& [left, right] : rows) text += fmt::format("  {:<{}}  {}\n", left, width, right);
  return text;
}

class HelpFormatter final : public CLI::Formatter {
 public:
  explicit HelpFormatter(HelpSpec spec) : spec_(std::move(spec)) {}

  std::string make_help(const CLI::App* app, std::string /*name*/, CLI::AppFormatMode /*mode*/) const override {
    std::string text = fmt::format("{}\n\n  {}\n", app->get_description(), spec_.usage);
    std::vector<Row> commands;
    for (const CLI::App* command : app->get_subcommands(nullptr))
      commands.emplace_back(command->get_name(), command->get_description());
    if (!commands.empty()) text += "\nCommands\n" + rows_text(commands);
    text += "\nOptions\n" + rows_text(option_rows(*app));
    if (!spec_.example.empty()) text += fmt::format("\nExample\n  {}\n", spec_.example);
    if (spec_.sources) text += "\n" + sources_help();
    return text;
  }

 private:
  static std::vector<Row> option_rows(const CLI::App& app) {
    std::vector<Row> rows;
    for (const CLI::Option* option : app.get_options()) {
      if (option->nonpositional()) {
        const std::string value = option->get_items_expected_max() > 0 ? " " + option->get_type_name() : "";
        rows.emplace_back(option->get_name(false, true) + value, option->get_description());
      }
    }
    return rows;
  }

  HelpSpec spec_;
};

void add_parameters(std::vector<Row>& rows, const std::vector<SourceParameterHelp>& parameters) {
  for (const SourceParameterHelp& parameter : parameters)
    rows.emplace_back("    " + parameter.key + "=", parameter.help);
}

}  // namespace

void set_help(CLI::App& app, HelpSpec spec) { app.formatter(std::make_shared<HelpFormatter>(std::move(spec))); }

std::string sources_help() {
  std::vector<Row> schemes;
  for (const SourceScheme& scheme : source_schemes()) {
    schemes.emplace_back(scheme.syntax, scheme.help);
    add_parameters(schemes, scheme.parameters);
  }
  std::vector<Row> layers;
  for (const SourceLayer& layer : source_layers()) {
    layers.emplace_back(layer.name + "+", layer.help);
    add_parameters(layers, layer.parameters);
  }
  std::string text = "Sources (a URI is SCHEME:..., parameters follow as ?KEY=VALUE&KEY=VALUE)\n" + rows_text(schemes);
  if (!layers.empty()) text += "\nLayers (in front of a source, as in LAYER+SCHEME:...)\n" + rows_text(layers);
  return text;
}

}  // namespace uffda::cli
