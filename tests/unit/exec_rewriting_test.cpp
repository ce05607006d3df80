// Which programs load the shim, and what the shim is told of names.
#include "exec/rewriting.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include "exec/program.h"

namespace uffda::exec {
namespace {

namespace fs = std::filesystem;

struct Program {
  unsigned char elf_class = ELFCLASS64;
  Elf64_Half machine = EM_X86_64;
  std::vector<Elf64_Word> parts;

  [[nodiscard]] std::string bytes() const {
    Elf64_Ehdr header{};
    std::copy_n(ELFMAG, SELFMAG, header.e_ident);
    header.e_ident[EI_CLASS] = elf_class;
    header.e_machine = machine;
    header.e_phoff = sizeof header;
    header.e_phnum = static_cast<Elf64_Half>(parts.size());
    std::string text(reinterpret_cast<const char*>(&header), sizeof header);
    for (const Elf64_Word type : parts) {
      Elf64_Phdr part{};
      part.p_type = type;
      text.append(reinterpret_cast<const char*>(&part), sizeof part);
    }
    return text;
  }
};

class StaticProgram : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "uffda-program-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = fs::canonical(name);
    write("dynamic", Program{.parts = {PT_PHDR, PT_INTERP, PT_LOAD}}.bytes());
    write("static", Program{.parts = {PT_LOAD, PT_DYNAMIC}}.bytes());
  }
  void TearDown() override { fs::remove_all(directory_); }
  [[nodiscard]] std::string at(const std::string& name) const { return directory_ / name; }
  void write(const std::string& name, std::string_view text) const {
    std::ofstream(at(name), std::ios::binary) << text;
    ASSERT_EQ(::chmod(at(name).c_str(), 0755), 0);
  }

  fs::path directory_;
};

TEST_F(StaticProgram, IsOneWithoutALoader) {
  EXPECT_EQ(static_program(at("dynamic")), std::nullopt);
  EXPECT_EQ(static_program(at("static")), at("static"));
  EXPECT_EQ(static_program("/bin/sh"), std::nullopt);
}

TEST_F(StaticProgram, IsOneThatTheShimDoesNotFit) {
  write("old", Program{.elf_class = ELFCLASS32, .parts = {PT_INTERP}}.bytes());
  write("foreign", Program{.machine = EM_AARCH64, .parts = {PT_INTERP}}.bytes());
  EXPECT_EQ(static_program(at("old")), at("old"));
  EXPECT_EQ(static_program(at("foreign")), at("foreign"));
}

TEST_F(StaticProgram, MayBeTheInterpreterOfAScript) {
  write("to-static", "#!" + at("static") + "\n");
  write("to-dynamic", "#! \t" + at("dynamic") + " -argument\nmore");
  write("to-script", "#!" + at("to-static"));
  write("to-itself", "#!" + at("to-itself"));
  write("empty-line", "#!\n");
  write("words", "echo no line that names an interpreter");
  EXPECT_EQ(static_program(at("to-static")), at("static"));
  EXPECT_EQ(static_program(at("to-script")), at("static"));
  for (const char* name : {"to-dynamic", "to-itself", "empty-line", "words"})
    EXPECT_EQ(static_program(at(name)), std::nullopt) << name;
}

TEST_F(StaticProgram, WhatIsDamagedOrMissingIsLeftToExec) {
  write("empty", "");
  write("cut", Program{.parts = {PT_LOAD, PT_INTERP}}.bytes().substr(0, sizeof(Elf64_Ehdr) + 60));
  EXPECT_EQ(static_program(at("empty")), std::nullopt);
  EXPECT_EQ(static_program(at("missing")), std::nullopt);
  EXPECT_EQ(static_program("no-program-has-this-name"), std::nullopt);
  EXPECT_EQ(static_program(at("cut")), at("cut"));  // it has no loader that anybody could find
}

ResolvedMap map(std::string path, std::string asked, std::string mount_path) {
  ResolvedMap result;
  result.path = std::move(path);
  result.asked = std::move(asked);
  result.mount_path = std::move(mount_path);
  return result;
}

TEST(RewritingRules, AreForWhatIsMountedElsewhere) {
  EXPECT_EQ(rewriting_rules({map("/a", "/a", "/a")}, "/outer=/there"), "");
  EXPECT_EQ(rewriting_rules({map("/a", "/link", "/a"), map("/b", "/b", "/run/b")}, nullptr), "/b=/run/b");
}

TEST(RewritingRules, CoverBothSpellingsAndKeepTheOuterOnes) {
  EXPECT_EQ(rewriting_rules({map("/b", "/link/b", "/run/b")}, "/outer=/there"),
            "/b=/run/b;/link/b=/run/b;/outer=/there");
}

}  // namespace
}  // namespace uffda::exec
