#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/bench.h"

namespace bench {

Report::Report(std::string program, int argc, char** argv)
    : program_(std::move(program)), arguments_(argv + 1, argv + argc) {
  for (const std::string& argument : arguments_) quick_ = quick_ || argument == "--quick";
}

std::string Report::option(std::string_view name, std::string fallback) const {
  for (std::size_t i = 0; i + 1 < arguments_.size(); ++i) {
    if (arguments_[i] == fmt::format("--{}", name)) return arguments_[i + 1];
  }
  return fallback;
}

void Report::compare(Comparison comparison) {
  if (comparison.ratio == 0 && comparison.peer != 0) comparison.ratio = comparison.uffda / comparison.peer;
  comparisons_.push_back(std::move(comparison));
}

void Report::compare_rounds(Comparison comparison, const std::vector<double>& uffda, const std::vector<double>& peer) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(uffda.size(), peer.size()); ++i) ratios.push_back(uffda[i] / peer[i]);
  if (ratios.empty()) return;
  comparison.uffda = median(uffda);
  comparison.peer = median(peer);
  comparison.ratio = median(ratios);
  comparisons_.push_back(std::move(comparison));
}

void Report::figure(const std::string& way, const std::string& unit, const Summary& summary) {
  figures_.push_back({.way = way, .unit = unit, .summary = summary});
}

void Report::skip(const std::string& what, const std::string& why) {
  progress(fmt::format("not measured: {}: {}", what, why));
  skips_.push_back({.what = what, .why = why});
}

void Report::progress(const std::string& text) { std::fprintf(stderr, "  %s\n", text.c_str()); }

void Report::finish() const {
  nlohmann::ordered_json json;
  json["program"] = program_;
  json["comparisons"] = nlohmann::ordered_json::array();
  for (const Comparison& c : comparisons_) {
    nlohmann::ordered_json row{{"name", c.name},      {"unit", c.unit},       {"uffda", c.uffda},
                               {"peer", c.peer_name}, {"peer_value", c.peer}, {"ratio", c.ratio}};
    if (c.target) {
      const bool most = c.target->bound == Bound::at_most;
      row[most ? "at_most" : "at_least"] = c.target->ratio;
      row["ok"] = most ? c.ratio <= c.target->ratio : c.ratio >= c.target->ratio;
    }
    json["comparisons"].push_back(std::move(row));
  }
  json["figures"] = nlohmann::ordered_json::array();
  for (const Figure& f : figures_) {
    json["figures"].push_back({{"way", f.way},
                               {"unit", f.unit},
                               {"p50", f.summary.p50},
                               {"p90", f.summary.p90},
                               {"p99", f.summary.p99},
                               {"mean", f.summary.mean}});
  }
  json["skipped"] = nlohmann::ordered_json::array();
  for (const Skip& s : skips_) json["skipped"].push_back({{"what", s.what}, {"why", s.why}});

  const std::string path = option("json", "");
  const std::string text = json.dump(2) + "\n";
  if (path.empty()) {
    std::fputs(text.c_str(), stdout);
    return;
  }
  std::ofstream file(path);
  file << text;
  if (!file.flush()) die(fmt::format("cannot write {}", path));
}

}  // namespace bench
