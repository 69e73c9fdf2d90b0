"""A candlestick chart of one ticker, which says whose data it shows and that it shows quotes."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")  # no window, whatever the machine has

import matplotlib.pyplot as plt
import mplfinance as mpf
import pandas as pd
from matplotlib.figure import Figure

from cryptostream_dagster.client import Client, Freq, Moment
from ingest_services.errors import UserError

# The chart's style asks for a weight that the default font has not; the next one does.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

_PRICES = ("open_price", "high_price", "low_price", "close_price")
_SIZE_INCHES = (12, 6)
_LENGTHS: dict[Freq, str] = {"5min": "5-minute", "1h": "1-hour", "1d": "1-day"}


def draw(
    client: Client,
    ticker: str,
    start: Moment | None,
    end: Moment | None,
    out: Path | None,
    freq: Freq = "5min",
) -> Path:
    """Draw candles into a PNG.

    Args:
        client: Where to read.
        ticker: `BTC` or `KRW-BTC`.
        start: First moment; all there is by default.
        end: End, exclusive.
        out: File to write; `<ticker>.png` in the working directory by default.
        freq: `5min`, or `1h` or `1d` of the market's clock.

    Returns:
        The file.

    Raises:
        UserError: If there is no candle, or the file cannot be written.
    """
    frame = client.candles(ticker, start, end, freq=freq)
    name = frame.attrs["ticker"]
    if frame.empty:
        raise UserError(f"{name}: there is no candle to draw in that time")
    path = out or Path(f"{name}.png")
    figure = plot(frame, client.settings.market_time_zone, freq)
    try:
        figure.savefig(path, dpi=110, bbox_inches="tight")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    finally:
        plt.close(figure)
    return path


def plot(frame: pd.DataFrame, zone: str, freq: Freq = "5min") -> Figure:
    """Return the figure of some candles.

    Args:
        frame: As `Client.candles` returns it, not empty.
        zone: Name of the zone of its index.
        freq: What the candles are of.
    """
    simulated = frame.attrs["source"] == "simulator"
    # mplfinance wants a volume only if asked for it, and times without a zone: the market's clock.
    prices = frame[list(_PRICES)].set_axis(["Open", "High", "Low", "Close"], axis=1).tz_localize(None)
    figure: Figure
    figure, axes = mpf.plot(
        prices,
        type="candle",
        style="yahoo",
        figsize=_SIZE_INCHES,
        ylabel="mid price",
        xrotation=0,
        returnfig=True,
        warn_too_much_data=len(prices) + 1,
    )
    axes[0].yaxis.set_major_formatter("{x:,.12g}")
    figure.suptitle(
        f"{frame.attrs['ticker']}, {_LENGTHS[freq]} candles of the mid price (quotes, not trades)\n"
        f"{prices.index[0]:%Y-%m-%d %H:%M} to {prices.index[-1]:%Y-%m-%d %H:%M} {zone}, "
        + ("simulated data" if simulated else "source: Upbit"),
        fontsize=12,
        y=0.97,
    )
    if simulated:
        axes[0].text(
            0.5, 0.5, "SIMULATED DATA",
            transform=axes[0].transAxes, ha="center", va="center",
            fontsize=44, color="gray", alpha=0.25, rotation=20,
        )  # fmt: skip
    return figure
