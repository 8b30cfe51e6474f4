#include "fulgur/train/data/documents.h"

#include <zlib.h>

#include <algorithm>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/json.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

std::string read_gzip(const fs::path& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  FULGUR_CHECK(file, "[data] ", path.string(), ": cannot open");
  std::string out;
  char block[1 << 16];
  int got;
  while ((got = gzread(file, block, sizeof block)) > 0) out.append(block, got);
  bool whole = got == 0 && gzclose(file) == Z_OK;
  if (got < 0) gzclose(file);
  FULGUR_CHECK(whole, "[data] ", path.string(), ": expected a whole gzip file, got a damaged one");
  return out;
}

void visit_lines(const fs::path& path, const std::string& bytes, const std::function<void(Document)>& visit) {
  size_t line = 0;
  for (size_t at = 0; at < bytes.size();) {
    size_t end = std::min(bytes.find('\n', at), bytes.size());
    auto text = std::string_view(bytes).substr(at, end - at);
    at = end + 1, ++line;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto name = cat(path.string(), ":", line);
    Json json = parse_json(valid_utf8(text), name);
    FULGUR_CHECK(json.is_object() && json.contains("text") && json["text"].is_string(), "[data] ", name,
                 ": expected an object with a string \"text\", got ", json.dump().substr(0, 80));
    visit({name, json["text"].get<std::string>()});
  }
}

void visit_file(const fs::path& path, const std::function<void(Document)>& visit) {
  bool gzipped = path.extension() == ".gz";
  std::string bytes = gzipped ? read_gzip(path) : read_file(path);
  auto kind = (gzipped ? path.stem() : path.filename()).extension();
  if (kind == ".jsonl") return visit_lines(path, bytes, visit);
  if (bytes.find('\0') != std::string::npos) return;  // not text
  bool html = kind == ".html" || kind == ".htm";
  visit({path.string(), valid_utf8(html ? html_text(valid_utf8(bytes), path.string()) : bytes)});
}

}  // namespace

void for_each_document(const fs::path& path, const std::function<void(Document)>& visit) {
  FULGUR_CHECK(fs::exists(path), "[data] ", path.string(), ": expected a file or folder, got nothing there");
  if (!fs::is_directory(path)) return visit_file(path, visit);
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(path))
    if (entry.is_regular_file() && entry.path().filename().string()[0] != '.') files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) visit_file(file, visit);
}

}  // namespace fulgur
