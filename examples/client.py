"""An edit by `sage serve`: python client.py http://127.0.0.1:7860/ mug.png "a blue mug" "a red mug" edit.png

Of the standard library alone; with a token, give the address that the server printed.
"""
import http.cookiejar, json, sys, urllib.parse, urllib.request  # noqa: E401, I001

address, picture, source, target, out = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                     urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
opener.open(address).read()  # the cookie by which a visitor is known, and that of a token


def ask(path, data=None, kind="application/json"):
    request = urllib.request.Request(urllib.parse.urljoin(address, path), data, {"content-type": kind})
    return json.load(opener.open(request))


key = ask("api/pictures?name=mug.png", open(picture, "rb").read(), "application/octet-stream")["picture"]
job = ask("api/edit", json.dumps({"picture": key, "source": source, "target": target}).encode())
while job["state"] in ("waiting", "working"):
    job = ask(f"api/jobs/{job['job']}?wait=10")
if job["state"] != "done":
    sys.exit(job["error"] or job["state"])
open(out, "wb").write(opener.open(urllib.parse.urljoin(address, job["results"][0]["url"])).read())
