#include <gumbo.h>

#include <algorithm>
#include <array>

#include "fulgur/base/error.h"
#include "fulgur/train/data/documents.h"

namespace fulgur {
namespace {

bool hidden(GumboTag tag) {
  constexpr std::array kTags = {GUMBO_TAG_SCRIPT,   GUMBO_TAG_STYLE,    GUMBO_TAG_HEAD,
                                GUMBO_TAG_NOSCRIPT, GUMBO_TAG_TEMPLATE, GUMBO_TAG_NAV};
  return std::find(kTags.begin(), kTags.end(), tag) != kTags.end();
}

bool is_inline(GumboTag tag) {
  constexpr std::array kTags = {GUMBO_TAG_A,   GUMBO_TAG_ABBR, GUMBO_TAG_B,     GUMBO_TAG_CITE, GUMBO_TAG_CODE,
                                GUMBO_TAG_EM,  GUMBO_TAG_FONT, GUMBO_TAG_I,     GUMBO_TAG_KBD,  GUMBO_TAG_Q,
                                GUMBO_TAG_S,   GUMBO_TAG_SAMP, GUMBO_TAG_SMALL, GUMBO_TAG_SPAN, GUMBO_TAG_STRONG,
                                GUMBO_TAG_SUB, GUMBO_TAG_SUP,  GUMBO_TAG_TT,    GUMBO_TAG_U,    GUMBO_TAG_VAR};
  return std::find(kTags.begin(), kTags.end(), tag) != kTags.end();
}

// White space runs become one space outside <pre>; a block starts on a line of its own.
class Writer {
 public:
  void visit(const GumboNode& node, bool preformatted) {
    if (node.type == GUMBO_NODE_TEXT || node.type == GUMBO_NODE_CDATA) return text(node.v.text.text, preformatted);
    if (node.type == GUMBO_NODE_WHITESPACE) return text(" ", preformatted);
    if (node.type != GUMBO_NODE_ELEMENT && node.type != GUMBO_NODE_DOCUMENT) return;
    bool element = node.type == GUMBO_NODE_ELEMENT;
    if (element && hidden(node.v.element.tag)) return;
    bool block = element && !is_inline(node.v.element.tag);
    if (block) end_line();
    const GumboVector& children = element ? node.v.element.children : node.v.document.children;
    bool pre = preformatted || (element && node.v.element.tag == GUMBO_TAG_PRE);
    for (unsigned i = 0; i < children.length; ++i) visit(*static_cast<const GumboNode*>(children.data[i]), pre);
    if (block) end_line();
  }
  std::string take() { return std::move(out_); }

 private:
  void text(std::string_view value, bool preformatted) {
    for (char c : value) {
      bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
      if (!space || preformatted) out_ += c;
      else if (!out_.empty() && out_.back() != ' ' && out_.back() != '\n') out_ += ' ';
    }
  }
  void end_line() {
    while (!out_.empty() && out_.back() == ' ') out_.pop_back();
    if (!out_.empty() && out_.back() != '\n') out_ += '\n';
  }
  std::string out_;
};

}  // namespace

std::string html_text(std::string_view html) {
  GumboOptions options = kGumboDefaultOptions;
  GumboOutput* parsed = gumbo_parse_with_options(&options, html.data(), html.size());
  Writer writer;
  writer.visit(*parsed->document, false);
  gumbo_destroy_output(&options, parsed);
  return writer.take();
}

}  // namespace fulgur
