# Lets Debian's own cloud-init read a partition: its data sources, its webhook and phone-home, its network renderers. Answers JSON on standard output.
# Everything it writes goes into the folder named first. Usage: cloud-init.py FOLDER COMMAND ARGUMENT...
import base64
import email
import json
import logging
import os
import shutil
import subprocess
import sys

from cloudinit import distros, helpers, url_helper, util
from cloudinit.config import cc_phone_home
from cloudinit.net import eni, netplan, network_state, networkd
from cloudinit.reporting import events, handlers
from cloudinit.sources import DataSourceHostname, DataSourceMAAS, DataSourceNoCloud

folder, command, *arguments = sys.argv[1:]
logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
paths = helpers.Paths({"cloud_dir": folder + "/cloud", "run_dir": folder + "/run", "templates_dir": folder})
os.makedirs(folder + "/run", exist_ok=True)
skew_file = folder + "/oauth-skew.json"


def distro():
    return distros.fetch("debian")("debian", {"network": {}}, paths)


def parts(message):
    """What cloud-init's own processor makes of user-data or vendor-data: unpacked, decompressed, in parts."""
    return [
        {"type": part.get_content_type(), "content": base64.b64encode(part.get_payload(decode=True) or b"").decode()}
        for part in message.walk()
        if part.get_content_maintype() != "multipart"
    ]


def shown(ds):
    if not ds.get_data():
        raise SystemExit("the data source found nothing")
    return {
        "instanceId": ds.get_instance_id(),
        "hostname": ds.get_hostname().hostname,
        "keys": ds.get_public_ssh_keys(),
        "userDataRaw": base64.b64encode(ds.get_userdata_raw() or b"").decode(),
        "userData": parts(ds.get_userdata()),
        "vendorData": parts(ds.get_vendordata()),
        "metadata": {name: value for name, value in ds.metadata.items() if isinstance(value, (str, list))},
    }


def nocloud(url):
    sys_cfg = {"datasource": {"NoCloud": {"seedfrom": url, "fs_label": None}}}
    return shown(DataSourceNoCloud.DataSourceNoCloudNet(sys_cfg, distro(), paths))


def oauth(consumer_key, token_key, token_secret):
    return url_helper.OauthUrlHelper(consumer_key, token_key, token_secret, "", skew_data_file=skew_file)


def maas(url, consumer_key, token_key, token_secret, *shift):
    config = {"metadata_url": url, "consumer_key": consumer_key, "token_key": token_key, "token_secret": token_secret, "max_wait": 20}
    ds = DataSourceMAAS.DataSourceMAAS({"datasource": {"MAAS": config}}, distro(), paths)
    ds._oauth_helper = oauth(consumer_key, token_key, token_secret)
    if shift:
        # A machine whose clock is wrong: only what it signs with; its sleeps and limits stay true.
        ds._oauth_helper.skew_data["".join(url.split("/")[2:3])] = int(shift[0])
    found = shown(ds)
    found["skew"] = ds._oauth_helper.skew_data
    return found


def report(config, reports):
    """Posts as the webhook of a machine does: queued by a thread, one after the other."""
    config = json.loads(config)
    assert config.pop("type") == "webhook"
    if "token_key" in config:
        handler = handlers.WebHookHandler(**config)
        handler.readurl = oauth(config["consumer_key"], config["token_key"], config["token_secret"]).readurl
    else:
        handler = handlers.WebHookHandler(**config)
    for event_type, name, description, result in json.loads(reports):
        event = (
            events.FinishReportingEvent(name, description, result=result)
            if event_type == "finish"
            else events.ReportingEvent(event_type, name, description)
        )
        handler.publish_event(event)
    handler.flush()
    return {}


def phone_home(config, instance_id, hostname):
    class Cloud:
        def get_instance_id(self):
            return instance_id

        def get_hostname(self, fqdn=False):
            return DataSourceHostname(hostname, False)

    cloud = Cloud()
    cloud.paths = paths
    cc_phone_home.handle("phone_home", {"phone_home": json.loads(config)}, cloud, logging.getLogger("phone_home"), [])
    return {}


def network(documents):
    """Each network configuration (version 2) as cloud-init's renderers write it, and what netplan says to that; null where it takes it."""
    answers = []
    for index, text in enumerate(json.loads(documents)):
        # As YAML: what a machine reads is a text.
        config = util.load_yaml(text)
        target = "%s/network-%d" % (folder, index)
        state = network_state.parse_net_config_data(config)
        assert state is not None, "cloud-init found no network in it"
        netplan.Renderer({"netplan_path": "etc/netplan/50-cloud-init.yaml", "postcmds": False}).render_network_state(state, target=target)
        eni.Renderer({"eni_path": "etc/network/interfaces"}).render_network_state(state, target=target)
        networkd.Renderer({"network_conf_dir": target + "/etc/systemd/network/"}).render_network_state(state, target=target)
        written = {
            name: open(target + "/" + path).read()
            for name, path in {"netplan": "etc/netplan/50-cloud-init.yaml", "eni": "etc/network/interfaces"}.items()
        }
        check = None
        if shutil.which("netplan"):
            done = subprocess.run(["netplan", "generate", "--root-dir", target], capture_output=True, text=True, timeout=60)
            check = None if done.returncode == 0 else done.stderr
        answers.append({**written, "refused": check})
    return answers


command = {"nocloud": nocloud, "maas": maas, "report": report, "phone-home": phone_home, "network": network}[command]
print(json.dumps(command(*arguments)))
