// The table of contents: closed at first where it would fill a small screen; marks the section that is being read.
function setUpContents() {
  const contents = document.querySelector("nav details");
  contents.open = matchMedia("(min-width: 1100px)").matches;
  const links = [...contents.querySelectorAll("a")];
  const headings = links.map((link) => document.getElementById(link.getAttribute("href").slice(1)));
  const mark = () => {
    // The last heading above a line a little below the top of the window.
    const passed = headings.filter((heading) => heading.getBoundingClientRect().top < 120).length;
    links.forEach((link, index) => {
      if (index === passed - 1) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    });
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return; // at most once per frame
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      mark();
    });
  });
  mark();
}

setUpContents();
