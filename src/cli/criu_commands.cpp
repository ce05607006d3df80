#include "cli/criu_commands.h"

#include <fmt/format.h>

#include <charconv>

#include "cli/help.h"

namespace uffda::cli {
namespace {

constexpr std::string_view kHow =
    "write: uffda criu lazy-pages --images DIR, or uffda criu page-server --images DIR --port N";

Result<CriuCommand> lazy_pages_command(const CriuTexts& texts) {
  if (!texts.port.empty() || texts.receive)
    return fail(Errc::invalid_argument,
                "--port and --receive are for page-server; pages from a page server are "
                "--pages 'criu-page-server://HOST:PORT?images=DIR'");
  return CriuCommand{LazyPagesOptions{.images = texts.images, .work = texts.work, .pages = texts.pages}};
}

Result<CriuCommand> page_server_command(const CriuTexts& texts) {
  CriuPageServerOptions options{.images = texts.images, .pages = texts.pages, .address = texts.address};
  if (!texts.work.empty()) return fail(Errc::invalid_argument, "--work is for lazy-pages");
  if (texts.records != "24" && texts.records != "32")
    return fail(Errc::invalid_argument, fmt::format("--records {}: write 24 (CRIU up to 4.1) or 32", texts.records));
  if (texts.receive && !texts.pages.empty())
    return fail(Errc::invalid_argument, "--receive takes pages, and --pages gives them: give one of them");
  options.wide = texts.records == "32";
  options.receive = texts.receive;
  const char* const end = texts.port.data() + texts.port.size();
  const auto [last, error] = std::from_chars(texts.port.data(), end, options.port);
  if (error != std::errc{} || last != end)
    return fail(Errc::invalid_argument, "--port: a number is needed (0: any that is free, which is printed)");
  return CriuCommand{std::move(options)};
}

}  // namespace

CLI::App& add_criu_commands(CLI::App& root, CriuTexts& texts) {
  CLI::App& app =
      *root.add_subcommand("criu", "Serves restored containers their memory, in the place of CRIU's daemons");
  const auto text = [&](const char* name, std::string& value, const char* type, const char* help) {
    app.add_option(name, value, help)->type_name(type);
  };
  text("-D,--images", texts.images, "DIR", "the directory of the dump");
  text("-W,--work", texts.work, "DIR",
       "lazy-pages: where its socket is, as criu restore has it with -W (default: --images)");
  text("--pages", texts.pages, "URI", "the memory of the dump: a pack of it, a page server (default: the images)");
  text("--address", texts.address, "HOST", "page-server: where to listen (default: 127.0.0.1)");
  text("--port", texts.port, "N", "page-server: where to listen");
  text("--records", texts.records, "24|32",
       "page-server: bytes of a record: 24 up to CRIU 4.1, 32 from 4.2 on (default: 24)");
  app.add_flag("--receive", texts.receive, "page-server: store the pages that a dump on another host sends");
  app.add_option("words", texts.words)->group("");
  set_help(
      app,
      {.usage = "uffda criu lazy-pages --images DIR [options]\n       uffda criu page-server --images DIR --port N",
       .example = "uffda criu lazy-pages --images dump & criu restore -D dump -W dump --lazy-pages",
       .sources = false});
  return app;
}

Result<CriuCommand> criu_command(const CriuTexts& texts) {
  if (texts.words.size() != 1) return fail(Errc::invalid_argument, std::string(kHow));
  if (texts.images.empty()) return fail(Errc::invalid_argument, "no dump: give --images DIR");
  if (texts.words[0] == "lazy-pages") return lazy_pages_command(texts);
  if (texts.words[0] == "page-server") return page_server_command(texts);
  return fail(Errc::invalid_argument, fmt::format("'{}' is not expected here; {}", texts.words[0], kHow));
}

Result<int> run_criu(const CriuCommand& command) {
  if (const auto* lazy = std::get_if<LazyPagesOptions>(&command.options)) return run_lazy_pages(*lazy);
  return run_criu_page_server(std::get<CriuPageServerOptions>(command.options));
}

}  // namespace uffda::cli
