"""Read a page as a browser does: the forms in it, and what they would send."""

from html.parser import HTMLParser

from django import forms


class Page(HTMLParser):
    """The fields of the page's last form, as a browser that changes nothing would send them."""

    def __init__(self, response):
        super().__init__()
        self.text = response.content.decode()
        self.fields, self.buttons, self.links = [], {}, []
        self._select = self._area = self._option = None
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        name = found.get("name")
        if tag == "form":
            self.fields = []
        elif tag == "input":
            kind = found.get("type", "text")
            if kind in ("checkbox", "radio"):
                if "checked" in found:
                    self.fields.append((name, found.get("value", "on")))
            elif kind == "submit":
                self.buttons[name] = found.get("value", "")
            elif kind != "file" and name and "disabled" not in found:
                self.fields.append((name, found.get("value", "")))
        elif tag == "select":
            self._select = (name, "multiple" in found, [])
        elif tag == "option" and self._select:
            self._select[2].append((found.get("value", ""), "selected" in found))
        elif tag == "textarea":
            self._area = (name, [])

    def handle_data(self, data):
        if self._area:
            self._area[1].append(data)

    def handle_endtag(self, tag):
        if tag == "select" and self._select:
            name, multiple, options = self._select
            chosen = [value for value, selected in options if selected]
            if not chosen and options and not multiple:
                chosen = [options[0][0]]
            self.fields += [(name, value) for value in chosen]
            self._select = None
        elif tag == "textarea" and self._area:
            name, parts = self._area
            self.fields.append((name, "".join(parts).removeprefix("\n")))
            self._area = None

    def sent(self, *, without=(), **changes):
        """What is sent after these changes; a change to None is a box that is not ticked."""
        data = {}
        for name, value in self.fields:
            if name in without or "__prefix__" in name:
                continue
            data.setdefault(name, []).append(value)
        for name, value in changes.items():
            data.pop(name, None)
            if value is not None:
                data[name] = value
        return data


def sent(form, **changes):
    """What a browser sends of a form that it was shown."""
    data = {}
    for bound in form:
        value, widget = bound.value(), bound.field.widget
        if isinstance(widget, forms.MultiWidget):
            parts = value if isinstance(value, list) else widget.decompress(value)
            data |= {f"{bound.html_name}_{at}": str(part or "") for at, part in enumerate(parts)}
        elif value is True:
            data[bound.html_name] = "on"
        elif isinstance(value, list):
            data[bound.html_name] = [str(getattr(each, "pk", each)) for each in value]
        elif value is not None and value is not False and not isinstance(widget, forms.FileInput):
            data[bound.html_name] = str(value)
    return {**data, **{form.add_prefix(name): value for name, value in changes.items()}}
